"""fastclr preview: a picture is written, and the user's mistakes are named."""

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import write_tiny_file, write_tiny_recipe

from fastclr.cli.main import main


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    return write_tiny_file(tmp_path_factory.mktemp("preview") / "tiny.beton", 12)


def test_the_sheet_is_a_function_of_its_arguments(tiny_file, tmp_path, capsys):
    def sheet(*more: str) -> np.ndarray:
        assert main(["preview", str(tiny_file), "--out", str(tmp_path / "views.png"), *more]) == 0
        return np.asarray(Image.open(tmp_path / "views.png"))

    first = sheet("--rows", "3", "--size", "32")
    assert "3 images" in capsys.readouterr().out
    assert (first == sheet("--rows", "3", "--size", "32")).all()
    taller = sheet("--rows", "4", "--size", "32")
    assert taller.shape[0] > first.shape[0]
    assert taller.shape[1] == first.shape[1]
    for other in (["--seed", "1"], ["--epoch", "1"], ["--indices", "3", "4", "5"]):
        changed = sheet("--rows", "3", "--size", "32", *other)
        assert changed.shape == first.shape
        assert (changed != first).any(-1).mean() > 0.1
    assert len(sheet("--rows", "500", "--size", "16")) > len(taller)  # as many as there are
    assert "12 images" in capsys.readouterr().out


def test_the_views_can_be_a_recipes(tiny_file, tmp_path, capsys):
    recipe = write_tiny_recipe(tmp_path / "tiny.toml")
    out = tmp_path / "views.png"
    assert main(["preview", str(tiny_file), "--out", str(out), "--recipe", str(recipe), "--rows", "1"]) == 0
    assert out.exists()
    capsys.readouterr()

    def sheet(*more: str) -> np.ndarray:
        assert main(["preview", str(tiny_file), "--out", str(out), "--rows", "3", *more]) == 0
        return np.asarray(Image.open(out))

    views = sheet("--recipe", str(recipe))
    recipe.write_text(recipe.read_text().replace("[train]", "[train]\nseed = 7"))
    other = sheet("--recipe", str(recipe))
    assert (views != other).any()
    assert (views == sheet("--recipe", str(recipe), "--seed", "0")).all()
    recipe.write_text(recipe.read_text() + '\n[data]\norder = "sequential"\n')
    in_order = sheet("--recipe", str(recipe))
    assert (in_order == sheet("--recipe", str(recipe), "--indices", "0", "1", "2")).all()
    assert main(["preview", str(tiny_file), "--out", str(out), "--recipe", "no-such"]) == 2
    assert "no recipe 'no-such'" in capsys.readouterr().err


def test_a_recipe_with_views_of_several_sizes(tiny_file, tmp_path, capsys):
    recipe, out = tmp_path / "multi.toml", tmp_path / "views.png"
    command = ["preview", str(tiny_file), "--out", str(out), "--rows", "2", "--recipe", str(recipe)]

    def width_with(*tables: str) -> int:
        recipe.write_text("".join(f"[[views]]\n{table}\n" for table in tables))
        assert main(command) == 0
        return Image.open(out).width

    pair = width_with("size = 24\nnum_views = 1", "size = 24\nnum_views = 1\nsolarize_p = 1")
    assert width_with("size = 24") == pair
    assert main([*command, "--size", "16"]) == 0
    capsys.readouterr()
    assert width_with("size = 24", "size = 16\nnum_views = 6") > pair
    out.unlink()
    assert main([*command, "--size", "16"]) == 2
    assert "--size is 16, but the recipe has views of 24 and 16 px" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rows", "0"], "--rows is 0"),
        (["--size", "0"], "--size is 0"),
        (["--size", "9999"], "ViewSpec.size"),
        (["--indices", "12"], "has no image 12; its images are 0 to 11"),
        (["--epoch", "-1"], "--epoch is -1"),
        (["--seed", "-1"], "seed must be in"),
    ],
)
def test_settings_out_of_range(tiny_file, tmp_path, capsys, more, message):
    assert main(["preview", str(tiny_file), "--out", str(tmp_path / "a.png"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_files_that_are_not_there(tiny_file, tmp_path, capsys):
    assert main(["preview", str(tmp_path / "no.beton"), "--out", str(tmp_path / "a.png")]) == 2
    assert "no.beton" in capsys.readouterr().err
    assert main(["preview", str(tiny_file), "--out", str(tmp_path / "none" / "a.png")]) == 2
    assert "no such folder to write a.png to" in capsys.readouterr().err
    assert main(["preview", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    assert "is a folder, where a file is needed" in capsys.readouterr().err
    assert main(["preview", str(tiny_file), "--out", str(tmp_path / "a.txt")]) == 2
    assert "a.txt" in capsys.readouterr().err
