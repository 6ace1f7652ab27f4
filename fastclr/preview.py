"""Draws a contact sheet: the views that the loader makes from some images of a file, with the drawn numbers.

A row shows the source image with the crop boxes, the crops as the engine delivers them, and the augmented views as
training sees them.  The views stand beside the crops, or below them where an image has more than two.  The box and the
frames of a view have one color.
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
from pipelines.views import as_specs

CELL = 224
"""Height and width of a picture on the sheet, pixels."""
SOURCE = 300
"""Maximum width of a source image on the sheet, pixels."""
GAP, GROUP_GAP, MARGIN = 16, 32, 30
"""Space between two pictures, before the crops and before the views, and around the sheet, pixels."""
LINE = 17
"""Distance between two lines of text, pixels."""
TEXT_LINES = 3
CELL_HEIGHT = CELL + TEXT_LINES * LINE + 24
"""Height of a picture with its text and the space below, pixels."""
MAX_BESIDE = 2
"""Maximum number of views that stand beside their crops; more would make the sheet too wide."""
MAX_NAME = 40
"""Maximum length of a class name, letters; longer ones are shortened."""

PAPER, INK, QUIET = "#fbfaf8", "#23211f", "#77716b"
VIEW_COLORS = (
    *("#e4572e", "#2e86ab", "#6a994e", "#9b5de5", "#e0a100"),
    *("#17a398", "#d81159", "#8d6346", "#3d5a80", "#a3b18a"),
)
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
    crops: list[np.ndarray]
    """Of each view, uint8 [size, size, 3]."""
    views: list[np.ndarray]
    """The same crops, augmented and with the normalisation undone."""


def draw_samples(
    reader: BetonReader,
    views: ViewSpec | Sequence[ViewSpec],
    *,
    rows: int = 6,
    seed: int = 0,
    epoch: int = 0,
    order: Order = "random",
    indices: Sequence[int] | None = None,
) -> list[Sample]:
    """Crop and augment the images of some rows as training does.

    Args:
        views: the distributions of the views: a spec, or several.
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
    specs = as_specs(views)
    planner = BatchPlanner(reader.heights, reader.widths, specs, batch_size=len(chosen), seed=seed)
    plan = BatchPlan(epoch, 0, chosen, planner.draw(epoch, chosen))
    engine = NativeEngine(reader, planner, num_threads=1, augment=False)
    with closing(engine), closing(engine.run(iter([plan]), planner)) as batches:
        decoded = next(batches)
    plan = decoded.plan  # names the replacements of corrupt images
    assert isinstance(decoded, Crops)
    mean, std = torch.tensor(specs[0].mean), torch.tensor(specs[0].std)
    crops, augmented = list[np.ndarray](), list[np.ndarray]()  # of each view, [B, size, size, 3]
    for group, pixels in zip(planner.groups, decoded.pixels, strict=True):
        normalised = cpu.augment(pixels, plan.params[group.views], group.specs[0]).permute(0, 1, 3, 4, 2)
        crops += [*np.asarray(pixels)]
        augmented += [*((normalised * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()]
    return [
        Sample(
            index=int(index),
            label=class_name(reader, int(index)),
            source=reader.decode(int(index)),
            params=plan.params[:, row : row + 1],
            crops=[view[row] for view in crops],
            views=[view[row] for view in augmented],
        )
        for row, index in enumerate(plan.indices)
    ]


def contact_sheet(samples: Sequence[Sample], title: str) -> Image.Image:
    """Draw the sheet: RGB, one row per sample."""
    num_views = len(samples[0].crops)
    places, names = _places(num_views), _column_names([len(crop) for crop in samples[0].crops])
    header, row_height = MARGIN + 58, places[-1][1] + CELL_HEIGHT
    width, height = places[-1][0] + CELL + MARGIN, header + len(samples) * row_height + MARGIN - 12
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 8), printable(title), INK, _font(18))
    for name, (left, _) in zip(names, places, strict=False):
        pen.text((left, MARGIN + 31), name, QUIET, _font(12))
    for row, sample in enumerate(samples):
        top = header + row * row_height
        _paste_source(sheet, sample, top)
        texts = [_source_text(sample)]
        texts += [_crop_text(sample.params, view) for view in range(num_views)]
        texts += [_view_text(sample.params, view) for view in range(num_views)]
        for number, picture in enumerate([*sample.crops, *sample.views]):
            left, below = places[1 + number]
            _paste_framed(sheet, picture, left, top + below, _view_color(number % num_views))
        for lines, (left, below) in zip(texts, places, strict=True):
            for number, line in enumerate(lines):
                color = INK if number == 0 else QUIET
                pen.text((left, top + below + CELL + 9 + number * LINE), line, color, _font(12))
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


def _column_names(sizes: Sequence[int]) -> list[str]:
    """Return the names above the columns, with the sizes of the views in pixels if they differ."""
    numbers = [
        f"{view}, {size} px" if len(set(sizes)) > 1 else f"{view}" for view, size in enumerate(sizes, 1)
    ]
    if len(sizes) > MAX_BESIDE:
        return ["source", *(f"crop and view {number}" for number in numbers)]
    return ["source", *(f"crop {number}" for number in numbers), *(f"view {number}" for number in numbers)]


def _places(num_views: int) -> list[tuple[int, int]]:
    """Return the left edge, and the distance from the top of its row, of the source, each crop and each view."""
    first = MARGIN + SOURCE + GROUP_GAP
    lefts = [first + view * (CELL + GAP) for view in range(num_views)]
    right, down = (0, CELL_HEIGHT) if num_views > MAX_BESIDE else (lefts[-1] + CELL + GROUP_GAP - first, 0)
    return [(MARGIN, 0), *((left, 0) for left in lefts), *((left + right, down) for left in lefts)]


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


def _paste_framed(sheet: Image.Image, pixels: np.ndarray, left: int, top: int, color: str) -> None:
    sheet.paste(_fitted(pixels), (left, top))
    frame = (left - 3, top - 3, left + CELL + 2, top + CELL + 2)
    ImageDraw.Draw(sheet).rectangle(frame, None, color, 3)


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
    last = ["grayscale"] if params.grayscale[view, 0] else []
    last += [f"blur σ {sigma:.2f} px"] if sigma else []
    last += ["solarized"] if np.isfinite(params.solarize[view, 0]) else []
    return [*lines, ", ".join(last)] if last else lines


def class_name(reader: BetonReader, index: int) -> str:
    """Return the class of a sample: its name where the side-car has one, else its number."""
    label = int(reader.labels[index])
    if label < 0:
        return "no label"
    names = reader.class_names
    return printable(names[label], MAX_NAME) if names and label < len(names) else f"class {label}"
