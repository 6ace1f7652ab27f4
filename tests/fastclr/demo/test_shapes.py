"""The drawn pictures: reproducible, and told apart by shape alone."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastclr.demo.shapes import SHAPES, draw_folder, draw_image
from fastclr.evaluate import knn_accuracy


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def area(ring: np.ndarray) -> float:
    """Return the area of a polygon, by the shoelace formula."""
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_the_pictures_depend_on_seed_and_number_alone(tmp_path):
    draw_folder(tmp_path / "one", 230, seed=3)  # 230: three chunks, the last one short
    draw_folder(tmp_path / "two", 230, seed=3, workers=2)
    first = content(tmp_path / "one")
    assert first == content(tmp_path / "two")
    assert sorted({name.split("/")[0] for name in first}) == list(SHAPES)
    assert len(first) == len(set(first.values())) == 230

    draw_folder(tmp_path / "two", 20, seed=3)  # fewer: the others must not stay
    shorter = content(tmp_path / "two")
    assert len(shorter) == 20
    assert shorter.items() <= first.items()
    draw_folder(tmp_path / "two", 20, seed=4)
    assert not set(content(tmp_path / "two").values()) & set(first.values())


INTERRUPTED = """
import sys
from pathlib import Path
from fastclr.demo.shapes import draw_folder
if __name__ == "__main__":
    print("begun", flush=True)
    draw_folder(Path(sys.argv[1]), 100_000, seed=0, workers=2)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.3, 3.0])
def test_an_interrupt_ends_all_processes(tmp_path, after_s):
    """Ctrl-C goes to the whole group of processes, at whatever moment of their start."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "drawn")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)  # until the last child has closed the pipes
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


def test_pictures_are_jpegs_of_many_sizes(tmp_path):
    draw_folder(tmp_path, 60, seed=0)
    sizes = set()
    for data in content(tmp_path).values():
        picture = Image.open(io.BytesIO(data))
        assert picture.format == "JPEG"
        assert 56 <= min(picture.size) <= max(picture.size) <= 112
        sizes.add(picture.size)
    assert len(sizes) > 50


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("circle", np.pi * 0.9**2),
        ("ring", np.pi * (1 - 0.6**2)),
        ("square", 2.0),
        ("triangle", 1.1**2 * 3**1.5 / 4),
        ("cross", 0.95**2 * (4 - 4 * 0.7**2)),
        # a disc less its overlap with the inner disc: two circular segments
        ("crescent", np.pi - 1.53255),
    ],
)
def test_outlines_have_the_area_of_their_shape(name, expected):
    outer, *holes = (area(ring) for ring in SHAPES[name])
    assert outer - sum(holes) == pytest.approx(expected, rel=0.012)  # curves are polygons of 48 corners


def test_outlines_fill_the_unit_disc():
    for name, (outer, *_) in SHAPES.items():
        assert 0.9 <= np.hypot(*outer.T).max() <= 1.12, name


def test_pixels_do_not_give_the_class_away():
    names = list(SHAPES)

    def pixels(seed: int, count: int) -> torch.Tensor:
        pictures = (draw_image(SHAPES[names[i % 10]], np.random.default_rng((seed, i))) for i in range(count))
        small = [
            np.asarray(picture.resize((12, 12), Image.Resampling.BOX), np.float32) for picture in pictures
        ]
        return torch.from_numpy(np.stack(small)).flatten(1) - 127

    labels = torch.arange(600) % 10
    assert knn_accuracy(pixels(0, 600), labels, pixels(1, 200), labels[:200], k=20) < 0.25  # chance is 0.1
