"""FFCV's own writer, Reader and Loader, run by test_ffcv.py in processes of their own: its writer waits for
ever when a worker dies, and its Loader sets torch's threads for the whole process.

    python ffcv_scripts.py write FOLDER                writes FOLDER/{jpg,raw,smart,proportion}.beton
    python ffcv_scripts.py read FILE OUT.npz CACHES    what FFCV's Reader and Loader find in FILE; CACHES is
                                                       "os" (the system's page cache), "process" (its own) or both
"""

import sys
from pathlib import Path

import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter

NUM_SAMPLES = 60


class Drawn:
    """Images of growing size beside values for every other field that FFCV has."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple:
        index = int(index)
        y, x = np.mgrid[0 : 20 + index, 0 : 90 - index]
        pixels = np.stack([x * 2, y * 2, (x * y + 40 * index) % 256], -1).astype(np.uint8)
        # an empty payload shares its address with the next one
        text = np.full(index % 3, 120, np.uint8)
        return text, 7 * index, pixels, index - 1, {"index": index}, np.arange(4, dtype=np.float32), 0.5


def write(folder: Path) -> None:
    for mode in ("jpg", "raw", "smart", "proportion"):
        fields = {
            "text": BytesField(),
            "weight": IntField(),
            "photo": RGBImageField(write_mode=mode, smart_threshold=9000),
            "label": IntField(),
            "json": JSONField(),
            "array": NDArrayField(np.dtype("float32"), (4,)),
            "value": FloatField(),
        }
        writer = DatasetWriter(str(folder / f"{mode}.beton"), fields, num_workers=2)
        writer.from_indexed_dataset(Drawn(), chunksize=7)


def read(file: Path, out: Path, caches: list[str]) -> None:
    reader = Reader(str(file))
    found = {"fields": reader.field_names, "table": reader.alloc_table}
    for cache in caches:
        loader = Loader(
            str(file),
            batch_size=16,
            num_workers=1,
            order=OrderOption.SEQUENTIAL,
            os_cache=cache == "os",
            drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
        )
        batches = [(images.copy(), labels.copy()) for images, labels in loader]
        found[f"images_{cache}"] = np.concatenate([images for images, _ in batches])
        found[f"labels_{cache}"] = np.concatenate([labels for _, labels in batches])[:, 0]
    np.savez(out, **found)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        read(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
