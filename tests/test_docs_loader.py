"""docs/loader.md does what it says: its code is run, on drawn images."""

import re
from pathlib import Path

import pytest
import torch
from support.tiny_run import write_tiny_file

from pipelines import ViewLoader

PAGE = Path(__file__).parents[1] / "docs" / "loader.md"


@pytest.fixture
def blocks(tmp_path, monkeypatch) -> list[str]:
    """The page's code; in a folder with 140 images, of which two batches of 64 can be made."""
    monkeypatch.chdir(tmp_path)
    write_tiny_file(tmp_path / "photos.beton", 140)
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_an_epoch_can_be_taken_up_where_it_stopped(blocks):
    whole: list[torch.Tensor] = []
    names = {"step": lambda first, second: whole.append(torch.stack([first, second]))}
    exec(blocks[0], names)
    assert [list(views.shape) for views in whole] == 4 * [[2, 64, 3, 96, 96]]

    stopped: list[torch.Tensor] = []

    def step(first: torch.Tensor, second: torch.Tensor) -> None:
        stopped.append(first)
        if len(stopped) == 2:
            raise KeyboardInterrupt  # before the state of this batch is saved

    names["step"] = step
    with pytest.raises(KeyboardInterrupt):
        exec(blocks[0], names)
    rest: list[torch.Tensor] = []
    exec(blocks[2], names | {"step": lambda first, second: rest.append(torch.stack([first, second]))})
    assert len(rest) == 1
    assert torch.equal(rest[0], whole[1])


def test_views_of_several_sizes(blocks):
    shapes: list[tuple] = []
    names = {"ViewLoader": ViewLoader, "student": lambda *views: shapes.append(tuple(v.shape for v in views))}
    exec(blocks[1], names)
    assert shapes == 2 * [((2, 64, 3, 96, 96), (6, 64, 3, 48, 48))]


def test_ranks_share_a_batch(blocks):
    names: dict = {"ViewLoader": ViewLoader}
    exec(blocks[3], names)
    with names["loader"] as one, ViewLoader("photos.beton", batch_size=64, size=96) as both:
        for ours, theirs in zip(one, both, strict=True):
            assert torch.equal(ours.indices, theirs.indices[32:])
            assert torch.equal(ours.views, theirs.views[:, 32:])
