"""The demo's own images: ten shapes, everything else about a picture being random.

Only the outline depends on the class.  Number, place, size, rotation, color and texture of the shapes, the background,
and the size of the picture are drawn from the same distributions for every class, so neighbours in pixel space share a
background, not a class.  A picture has several copies of a shape in different colors: two crops of it have mainly the
shape in common, which is what contrastive learning keeps.
"""

import colorsys
import math
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Outline = list[np.ndarray]
"""Closed polygons [P, 2] of x, y in the unit disc; the first is filled, the others are holes in it."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SUPERSAMPLE = 4
"""Shapes are filled at this multiple of the resolution and averaged, for smooth edges."""


def _regular(corners: int, inner: float | None = None, turn: float = 0.0) -> np.ndarray:
    """Return a regular polygon; with `inner`, every second corner is at that radius (a star)."""
    number = corners if inner is None else 2 * corners
    angle = 2 * np.pi * (np.arange(number) / number + turn)
    radius = np.ones(number)
    if inner is not None:
        radius[1::2] = inner
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], 1) / 16.5


def _crescent() -> np.ndarray:
    """Return a disc of radius 1 without a disc of radius 0.8 moved by 0.55: both arcs between the two tips."""
    tip = np.arccos((1 - 0.8**2 + 0.55**2) / (2 * 0.55))
    tip_inner = np.arctan2(np.sin(tip), np.cos(tip) - 0.55)
    outer = np.linspace(tip, 2 * np.pi - tip, 48)
    inner = np.linspace(2 * np.pi - tip_inner, tip_inner, 32)
    return np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], 1),
            np.stack([0.55 + 0.8 * np.cos(inner), 0.8 * np.sin(inner)], 1),
        ]
    )


def _points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, float)


_CROSS = [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)]
_CROSS += [(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)]

SHAPES: dict[str, Outline] = {
    "arrow": [
        _points((0, -1), (0.8, -0.1), (0.28, -0.1), (0.28, 1), (-0.28, 1), (-0.28, -0.1), (-0.8, -0.1))
    ],
    "bolt": [_points((0.25, -1), (-0.6, 0.2), (-0.05, 0.2), (-0.25, 1), (0.6, -0.25), (0.05, -0.25))],
    "circle": [0.9 * _regular(48)],
    "crescent": [_crescent()],
    "cross": [0.95 * _points(*_CROSS)],
    "heart": [_heart()],
    "ring": [_regular(48), 0.6 * _regular(48)],
    "square": [_regular(4)],
    "star": [1.1 * _regular(5, inner=0.42)],
    "triangle": [1.1 * _regular(3)],
}


def draw_image(outline: Outline, rng: np.random.Generator) -> Image.Image:
    """Draw one picture, 56–112 pixels on a side, with up to seven copies of the shape."""
    height, width = (int(side) for side in rng.integers(56, 113, 2))
    colors = _background_colors(rng)
    picture = _clouds(*colors, height, width, rng)
    for center, radius in _places(height, width, rng):
        low = np.maximum(center - radius, 0).astype(int)
        high = np.minimum(center + radius + 1, (width, height)).astype(int)
        box = slice(low[1], high[1]), slice(low[0], high[0])
        covered = _mask(outline, center - low, radius, high - low, rng)[..., None]
        picture[box] += covered * (_texture(_ink(colors, rng), covered.shape[:2], rng) - picture[box])
    picture += 4 * rng.standard_normal(picture.shape, np.float32)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _places(height: int, width: int, rng: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """Draw centers (x, y) and radii, pixels, of copies that do not overlap."""
    placed: list[tuple[float, float, float]] = []
    wanted = rng.integers(4, 8)
    radii = rng.uniform(0.16, 0.25, 40) * min(height, width)
    for radius, u, v in zip(radii.tolist(), rng.random(40).tolist(), rng.random(40).tolist(), strict=True):
        margin = 0.9 * radius
        x, y = margin + u * (width - 2 * margin), margin + v * (height - 2 * margin)
        if all(math.hypot(x - other_x, y - other_y) > radius + other for other_x, other_y, other in placed):
            placed.append((x, y, radius))
        if len(placed) == wanted:
            break
    return [(np.array([x, y]), radius) for x, y, radius in placed]


def _mask(
    outline: Outline, center: np.ndarray, radius: float, size: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return each pixel's fraction under a randomly rotated copy, float32 [height, width]; `size` is (x, y)."""
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", tuple((size * SUPERSAMPLE).tolist()))
    pen = ImageDraw.Draw(canvas)
    for fill, ring in zip((255, 0), outline, strict=False):
        corners = (ring @ rotation * radius + center) * SUPERSAMPLE
        pen.polygon(corners.ravel().tolist(), fill=fill)
    return np.asarray(canvas.reduce(SUPERSAMPLE), np.float32) / 255


def _color(rng: np.random.Generator) -> np.ndarray:
    """Return a color as float32 [3], 0…255."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.2, 1))
    return np.array(rgb, np.float32) * 255


def _background_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw two colors of similar brightness."""
    while True:
        first, second = _color(rng), _color(rng)
        if abs(float((first - second) @ LUMA)) < 60:
            return first, second


def _ink(background: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw a color that differs from the background in brightness, so that grayscale views still show the shape."""
    while True:
        color = _color(rng)
        if min(abs(float((color - other) @ LUMA)) for other in background) > 50:
            return color


def _clouds(
    first: np.ndarray, second: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Blend two colors smoothly, float32 [height, width, 3]."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8))
    share = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    return first + share[..., None] * (second - first)


def _texture(color: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw a gradient, stripes or checks of a color and a shade of it, float32 [*shape, 3]."""
    shade = color + rng.uniform(-45, 45, 3).astype(np.float32)
    y, x = np.ogrid[-0.5 : 0.5 : shape[0] * 1j, -0.5 : 0.5 : shape[1] * 1j]
    angle, pitch = rng.uniform(0, 2 * np.pi), rng.uniform(12, 30)
    along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    across = np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x
    wave = (along, np.sin(pitch * along), np.sin(pitch * along) * np.sin(pitch * across))[rng.integers(3)]
    return color + np.clip(2 * wave + 0.5, 0, 1)[..., None].astype(np.float32) * (shade - color)


def draw_folder(folder: Path, count: int, seed: int, workers: int = 1) -> None:
    """Draw `count` JPEGs into class folders, the classes in turn: folder/<shape>/00000.jpg, …

    A picture depends on the seed and its number alone.

    Args:
        folder: made if it is missing; pictures of an earlier call are removed.
        count: pictures.
        seed: another one draws another set, e.g. one for training and one for testing.
        workers: processes; 1 draws in this one, and so do fewer than 100 pictures.

    Raises:
        OSError: a picture can't be written.
    """
    for name in SHAPES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).glob("[0-9]" * 5 + ".jpg"):
            old.unlink()
    chunks = [range(low, min(low + 100, count)) for low in range(0, count, 100)]
    draw = partial(_draw_chunk, folder, seed)
    if workers == 1 or len(chunks) == 1:
        for chunk in chunks:
            draw(chunk)
        return
    # spawned, not forked: the parent may have threads, whose locks a fork would copy in whatever state
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        with _ignore_sigint_in_children():
            drawn = pool.map(draw, chunks)
        try:
            list(drawn)  # raises what a process has raised
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _ignore_sigint_in_children() -> Iterator[None]:
    """Let child processes started in the block ignore Ctrl-C, which a terminal sends to all; their parent ends them."""
    # only the main thread may change signal handlers
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _draw_chunk(folder: Path, seed: int, numbers: range) -> None:
    names = list(SHAPES)
    for number in numbers:
        name = names[number % len(names)]
        picture = draw_image(SHAPES[name], np.random.default_rng((seed, number)))
        picture.save(folder / name / f"{number // len(names):05d}.jpg", quality=90)
