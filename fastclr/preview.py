"""Draws a contact sheet: the views that the loader makes from some images of a file, with the drawn numbers.

A row shows the source image with the crop boxes, the crops as the engine delivers them, and the augmented views as
training sees them.  The box and the frames of a view have one color.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipelines import BetonReader, ViewParams, ViewSpec
from pipelines.contracts import BatchPlan, Crops
from pipelines.engines.native.engine import NativeEngine
from pipelines.ops.augment import cpu
from pipelines.planner import BatchPlanner, Order, epoch_order
from pipelines.system.atomic_file import replacing, write_at
from pipelines.system.terminal import printable

CELL = 224
"""Height and width of a picture on the sheet, pixels."""
SOURCE = 300
"""Maximum width of a source image on the sheet, pixels."""
GAP, GROUP_GAP, MARGIN = 16, 32, 30
"""Space between two pictures, before the crops and before the views, and around the sheet, pixels."""
LINE = 17
"""Distance between two lines of text, pixels."""
TEXT_LINES = 3
MAX_NAME = 40
"""Maximum length of a class name, letters; longer ones are shortened."""

PAPER, INK, QUIET = "#fbfaf8", "#23211f", "#77716b"
VIEW_COLORS = ("#e4572e", "#2e86ab", "#6a994e", "#9b5de5")
"""Colors of the boxes and frames of view 1, 2, …"""
OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True, eq=False)
class Sample:
    """An image, the numbers drawn for it, and its views."""

    index: int
    label: str
    source: np.ndarray
    """uint8 [h, w, 3]."""
    params: ViewParams
    """Arrays [V, 1, …]."""
    crops: np.ndarray
    """uint8 [V, size, size, 3]."""
    views: np.ndarray
    """uint8 [V, size, size, 3]: augmented, with the normalisation undone."""


def draw_samples(
    reader: BetonReader,
    spec: ViewSpec,
    *,
    rows: int = 6,
    seed: int = 0,
    epoch: int = 0,
    order: Order = "random",
    indices: Sequence[int] | None = None,
) -> list[Sample]:
    """Crop and augment the images of some rows as training does.

    Args:
        rows: number of images: the first of the epoch in a run with this seed and order.
        indices: these images instead.

    Raises:
        ValueError: an index that the file does not have.
    """
    if indices is None:
        chosen = epoch_order(len(reader), seed, epoch, order)[:rows]
    else:
        chosen = np.asarray(indices, np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= len(reader))]
        if len(wrong):
            raise ValueError(f"{reader.path} has no image {wrong[0]}; its images are 0 to {len(reader) - 1}")
    planner = BatchPlanner(reader.heights, reader.widths, (spec,), batch_size=len(chosen), seed=seed)
    plan = BatchPlan(epoch, 0, chosen, planner.draw(epoch, chosen))
    engine = NativeEngine(reader, planner, num_threads=1, augment=False)
    with closing(engine), closing(engine.run(iter([plan]), planner)) as batches:
        crops = next(batches)
    plan = crops.plan  # names the replacements of corrupt images
    assert isinstance(crops, Crops)
    (pixels,) = crops.pixels
    normalised = cpu.augment(pixels, plan.params, spec).permute(0, 1, 3, 4, 2)
    levels = (normalised * torch.tensor(spec.std) + torch.tensor(spec.mean)) * 255
    views = levels.round().clamp(0, 255).to(torch.uint8).numpy()
    return [
        Sample(
            index=int(index),
            label=class_name(reader, int(index)),
            source=reader.decode(int(index)),
            params=plan.params[:, row : row + 1],
            crops=np.asarray(pixels)[:, row],
            views=views[:, row],
        )
        for row, index in enumerate(plan.indices)
    ]


def contact_sheet(samples: Sequence[Sample], title: str) -> Image.Image:
    """Draw the sheet: RGB, one row per sample."""
    num_views = len(samples[0].crops)
    width = _left(2 * num_views, num_views) + CELL + MARGIN
    header, row_height = MARGIN + 58, CELL + TEXT_LINES * LINE + 24
    sheet = Image.new("RGB", (width, header + len(samples) * row_height + MARGIN - 12), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 8), printable(title), INK, _font(18))
    for column, name in enumerate(_column_names(num_views)):
        pen.text((_left(column, num_views), MARGIN + 31), name, QUIET, _font(12))
    for row, sample in enumerate(samples):
        top = header + row * row_height
        _paste_source(sheet, sample, top)
        texts = [_source_text(sample)]
        texts += [_crop_text(sample.params, view) for view in range(num_views)]
        texts += [_view_text(sample.params, view) for view in range(num_views)]
        for view in range(num_views):
            for column, picture in (
                (1 + view, sample.crops[view]),
                (1 + num_views + view, sample.views[view]),
            ):
                left = _left(column, num_views)
                sheet.paste(_fitted(picture), (left, top))
                pen.rectangle(
                    (left - 3, top - 3, left + CELL + 2, top + CELL + 2), None, _view_color(view), 3
                )
        for column, lines in enumerate(texts):
            for number, line in enumerate(lines):
                color = INK if number == 0 else QUIET
                pen.text((_left(column, num_views), top + CELL + 9 + number * LINE), line, color, _font(12))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all, in the format that the path's suffix names.

    Raises:
        ValueError: a suffix that names no format of pictures.
        OSError: the file can't be written.
    """
    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise ValueError(
            f"{path}: {path.suffix or 'no suffix'} names no format of pictures; use .png, .jpg or .webp"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write {path.name} to; create it first")
    content = BytesIO()
    picture.save(content, known[path.suffix.lower()])
    with replacing(path) as descriptor:
        write_at(descriptor, content.getvalue(), 0, path)


def _column_names(num_views: int) -> list[str]:
    views = range(1, num_views + 1)
    return ["source", *(f"crop {v}" for v in views), *(f"view {v}" for v in views)]


def _left(column: int, num_views: int) -> int:
    """Return the left edge of a column; column 0 is the source, then come the crops, then the views."""
    if column == 0:
        return MARGIN
    groups = 1 if column <= num_views else 2
    return MARGIN + SOURCE + (column - 1) * (CELL + GAP) + groups * GROUP_GAP - (groups - 1) * GAP


def _view_color(view: int) -> str:
    return VIEW_COLORS[view % len(VIEW_COLORS)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's font has × and σ; PIL's own has neither, and system fonts may be missing
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _fitted(pixels: np.ndarray) -> Image.Image:
    """Resize a square picture to the size of a cell; the pixels of a small one stay visible."""
    picture = Image.fromarray(pixels)
    enlarges = picture.width < CELL
    return picture.resize((CELL, CELL), Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS)


def _paste_source(sheet: Image.Image, sample: Sample, top: int) -> None:
    """Paste the source image, and draw the boxes of the crops on it."""
    height, width = sample.source.shape[:2]
    scale = min(SOURCE / width, CELL / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet.paste(Image.fromarray(sample.source).resize(size, Image.Resampling.LANCZOS), (MARGIN, top))
    pen = ImageDraw.Draw(sheet)
    for view, (y, x, h, w) in enumerate(sample.params.box[:, 0].tolist()):
        corners = [
            MARGIN + x * scale,
            top + y * scale,
            MARGIN + (x + w) * scale - 1,
            top + (y + h) * scale - 1,
        ]
        for inset, color in ((0, PAPER), (1, _view_color(view)), (2, _view_color(view)), (3, PAPER)):
            x0, y0, x1, y1 = corners[0] + inset, corners[1] + inset, corners[2] - inset, corners[3] - inset
            if x0 < x1 and y0 < y1:
                pen.rectangle((x0, y0, x1, y1), None, color)


def _source_text(sample: Sample) -> list[str]:
    height, width = sample.source.shape[:2]
    return [sample.label, f"image {sample.index}, {width} × {height} px"]


def _crop_text(params: ViewParams, view: int) -> list[str]:
    top, left, height, width = params.box[view, 0].tolist()
    return [f"{width} × {height} at ({left}, {top})", "flipped" if params.flip[view, 0] else "not flipped"]


def _view_text(params: ViewParams, view: int) -> list[str]:
    """List the operations in the order in which they run."""
    numbers = params.jitter_factors[view, 0].tolist()
    lines = ["no color jitter"]
    if params.jitter[view, 0]:
        values = [*(f"×{factor:.2f}" for factor in numbers[:3]), f"{360 * numbers[3]:+.0f}°"]
        steps = [f"{OPERATIONS[k]} {values[k]}" for k in params.jitter_order[view, 0].tolist()]
        lines = [", ".join(steps[:2]), ", ".join(steps[2:])]
    sigma = float(params.blur_sigma[view, 0])
    last = (["grayscale"] if params.grayscale[view, 0] else []) + (
        [f"blur σ {sigma:.2f} px"] if sigma else []
    )
    return [*lines, ", ".join(last)] if last else lines


def class_name(reader: BetonReader, index: int) -> str:
    """Return the class of a sample: its name where the side-car has one, else its number."""
    label = int(reader.labels[index])
    if label < 0:
        return "no label"
    names = reader.class_names
    return printable(names[label], MAX_NAME) if names and label < len(names) else f"class {label}"
