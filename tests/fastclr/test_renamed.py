"""Settings of version 0.1 are still read: from recipes, in commands and from Python."""

import pytest

from fastclr.config import Config, LossConfig, ModelConfig
from fastclr.model import projector
from fastclr.recipes import from_table
from fastclr.renamed import RenamedSetting, current_arguments


def test_recipes_with_old_names_are_read_without_a_warning(recwarn):
    old = {"model": {"head_out": 64, "head_hidden": 32}, "loss": {"name": "margin"}, "views": {"views": 2}}
    config = from_table(old)
    assert (config.model.proj_dim, config.model.proj_hidden_dim) == (64, 32)
    assert config.loss.name == "margin_triplet" and config.views.num_views == 2
    assert not recwarn.list


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--model.head-out", "64"], ["--model.proj_dim", "64"]),
        (["--model.head_hidden=32"], ["--model.proj_hidden_dim=32"]),
        (["--loss.name", "margin"], ["--loss.name", "margin_triplet"]),
        (["--loss.name=margin"], ["--loss.name=margin_triplet"]),
    ],
)
def test_commands_with_old_names(old, new):
    with pytest.warns(RenamedSetting, match="is now"):
        assert current_arguments(["recipe", *old, "--out", "margin"]) == ["recipe", *new, "--out", "margin"]


def test_todays_names_stay_as_they_are(recwarn):
    argv = ["recipe", "file.beton", "--model.proj-dim", "64", "--loss.name", "nt_xent", "--val=a=b"]
    assert current_arguments(argv) == argv and not recwarn.list


def test_old_names_from_python():
    with pytest.warns(DeprecationWarning, match=r"ModelConfig\.head_out is now proj_dim"):
        assert ModelConfig(head_out=64) == ModelConfig(proj_dim=64)
    with pytest.warns(DeprecationWarning, match="margin_triplet"):
        assert LossConfig(name="margin") == LossConfig(name="margin_triplet")
    with pytest.warns(DeprecationWarning, match=r"projector\.out_width is now out_dim"):
        assert projector(16, out_width=8)[-1][0].out_features == 8
    with pytest.warns(DeprecationWarning, match=r"head_hidden"):
        assert Config().model.head_hidden is None


def test_the_old_home_of_train():
    from fastclr.train import loop, pretrain

    with pytest.warns(DeprecationWarning, match=r"pretrain\.train"):
        assert loop.train is pretrain.train
