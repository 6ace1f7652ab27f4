# docker build -t fastclr .
# docker run --gpus all --ipc=host -v /data:/data -v "$PWD/runs:/runs" fastclr train …: see deploy/docker.md
#
# torch's wheels bring their own CUDA libraries, so the base image needs none; the driver is the host's.
FROM python:3.11-slim-bookworm

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    PIP_NO_CACHE_DIR=1 \
    NUMBA_CACHE_DIR=/tmp/numba

WORKDIR /opt/fastclr
COPY . .
RUN deploy/install.sh ffcv,dali,imagenet,parquet,remote && rm -rf /var/lib/apt/lists/*

WORKDIR /work
ENTRYPOINT ["fastclr"]
CMD ["--help"]
