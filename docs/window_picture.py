"""Draw docs/window-decoding.png: which restart intervals of an image two crops need.

python docs/window_picture.py photos.beton INDEX docs/window-decoding.png
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import simplejpeg

from pipelines import BetonReader, ViewSpec, draw_views
from pipelines.jpeg.window import INTERVAL, MCU_HEIGHT, MCU_WIDTH, cut_window, read_layout

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

CROP, WINDOW, LINE = "#f2cc60", "#d1242f", "#ffffff"


def draw(file: Path, index: int, out: Path, seed: int = 0) -> None:
    """Draw image `index` with its intervals, its two crop boxes and its window, and beside it what is decoded."""
    with BetonReader(file) as reader:
        jpeg, pixels = np.array(reader.image_bytes(index)), reader[index][0]
        sizes = reader.heights[[index]], reader.widths[[index]]
        boxes = draw_views(ViewSpec.simclr(224), seed, 0, np.array([index]), *sizes).box[:, 0]
    top, left = boxes[:, :2].min(axis=0)
    bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    cut, (window_top, window_left) = cut_window(jpeg, top, left, bottom, right)
    window = simplejpeg.decode_jpeg(cut)
    height, width = pixels.shape[:2]

    figure, (whole, part) = plt.subplots(1, 2, figsize=(9, 3.7), width_ratios=[width, window.shape[1]])
    whole.imshow(pixels)
    _grid(whole, jpeg, height, width)
    whole.add_patch(_frame(window_left, window_top, window.shape[1], window.shape[0], WINDOW, 2.5))
    for box_top, box_left, box_height, box_width in boxes.tolist():
        whole.add_patch(_frame(box_left, box_top, box_width, box_height, CROP, 1.5))
    whole.set_title(f"the file: {width}×{height}, {jpeg.size:,} bytes", fontsize=9)
    part.imshow(window)
    share = window.size / pixels.size
    part.set_title(
        f"what is decoded: {window.shape[1]}×{window.shape[0]} ({share:.0%}), {cut.size:,} bytes", fontsize=9
    )
    for axis in (whole, part):
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(out, dpi=80)
    plt.close(figure)


def _grid(axis: Axes, jpeg: np.ndarray, height: int, width: int) -> None:
    """Lines between the restart intervals."""
    layout = np.zeros(7, np.int64)
    if not read_layout(jpeg, layout) or not layout[INTERVAL]:
        raise ValueError("the image has no restart markers; convert with --jpeg recompress or lossless")
    step = int(layout[INTERVAL] * layout[MCU_WIDTH])
    axis.vlines(np.arange(step, width, step) - 0.5, 0, height, LINE, linewidth=0.3)
    axis.hlines(
        np.arange(layout[MCU_HEIGHT], height, layout[MCU_HEIGHT]) - 0.5, 0, width, LINE, linewidth=0.3
    )


def _frame(left: float, top: float, width: float, height: float, color: str, line: float) -> Rectangle:
    return Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=color, linewidth=line)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
