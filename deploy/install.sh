#!/bin/sh
# Installs fastclr with every engine on Debian or Ubuntu: the steps of the Dockerfile, and of CI.
#   deploy/install.sh [EXTRAS]     as root; EXTRAS defaults to ffcv,dali,imagenet,parquet,remote
# PIP names the pip to install with (default: pip), EDITABLE=1 installs the checkout in place.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-ffcv,dali,imagenet,parquet,remote}

# ffcv is compiled on installation, against Debian's OpenCV and libjpeg-turbo
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends g++ pkg-config libturbojpeg0-dev libopencv-dev
# SPDL, a peer of `fastclr bench loader`, decodes with FFmpeg's libraries
case $extras in *bench*) apt-get install -qq --yes --no-install-recommends ffmpeg ;; esac

${PIP:-pip} install --quiet --constraint constraints.txt ${EDITABLE:+--editable} ".[$extras]"
