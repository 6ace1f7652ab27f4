"""Schedules: values by the share of the run, the way through TOML, and what is refused at the start."""

import dataclasses
import tomllib

import pytest

from fastclr.config import Config, LossConfig, flatten
from fastclr.recipes import from_table, load_recipe, to_toml
from fastclr.schedule import Scheduled, breakpoints, epoch_share, num_loader_epochs
from fastclr.train.build import view_sizes, views_of_epoch
from pipelines.views import ViewSpec
from pipelines.views.presets import byol

TEXT = """
[views]
size = 24
gray_p = 0.1

[schedule]
views.size = { at = [0.0, 0.55], values = [16, 24] }
views.scale = { at = [0, 1], values = [[0.5, 1], [0.3, 0.8]], kind = "linear" }
loss.temperature = { at = [0.2, 0.6, 1.0], values = [0.1, 0.2, 0.4], kind = "linear" }
"""


def scheduled(line: str, views: str = "size = 24") -> Config:
    return from_table(tomllib.loads(f"[views]\n{views}\n[schedule]\n{line}"))


def test_the_values_are_functions_of_the_share():
    config = from_table(tomllib.loads(TEXT))
    assert [config.views_at(share)[0].size for share in (0, 0.54, 0.55, 1)] == [16, 16, 24, 24]
    assert config.views_at(0.5)[0].scale == (0.4, 0.9)
    temperatures = [config.loss_at(share).temperature for share in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert temperatures == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.3, 0.4])
    # the rest stays, also what `size` decides: at 24 px there is no blur and half the jitter
    unchanged = dataclasses.replace(config.views_at(0.0)[0], size=24, scale=config.views.scale)
    assert unchanged == config.views == ViewSpec.simclr(24, gray_p=0.1)
    assert dataclasses.replace(config.loss_at(1.0), temperature=0.1) == LossConfig()
    assert (config.view_size, config.eval_size) == (24, 24)


def test_sizes_are_rounded_to_multiples():
    sizes = Scheduled("views.size", (0.7, 0.9), (160, 224), "linear", multiple_of=32)
    assert [sizes.value(share) for share in (0.0, 0.74, 0.76, 0.84, 0.86, 0.9, 1.0)] == [
        *(160, 160, 192, 192, 224, 224, 224)
    ]
    downwards = Scheduled("views.size", (0.0, 1.0), (32, 30), "linear")
    assert [downwards.value(share) for share in (0.1, 0.5, 0.9)] == [32, 31, 30]


def test_views_by_number():
    text = """
    [[views]]
    size = 32
    num_views = 1
    [[views]]
    size = 32
    num_views = 1
    [schedule]
    views.size = { at = [0, 0.5], values = [16, 32] }
    views.gray_p = { at = [0, 0.5], values = [0.0, 0.1] }
    "views[1].gray_p" = { at = [0, 0.5], values = [0.2, 0.3] }
    """
    config = from_table(tomllib.loads(text))
    seen = [[(spec.size, spec.gray_p) for spec in config.views_at(share)] for share in (0.0, 0.5)]
    assert seen == [[(16, 0.0), (16, 0.2)], [(32, 0.1), (32, 0.3)]]
    assert from_table(tomllib.loads(to_toml(config))) == config


def test_the_way_through_toml():
    config = from_table(tomllib.loads(TEXT))
    assert from_table(tomllib.loads(to_toml(config))) == config
    assert "[schedule]" not in to_toml(Config())
    rounded = scheduled('views.size = { at=[0,1], values=[16,24], kind="linear", multiple_of=4 }')
    assert from_table(tomllib.loads(to_toml(rounded))) == rounded
    # TOML's order of the lines does not matter
    lines = TEXT.splitlines()
    assert from_table(tomllib.loads("\n".join([*lines[:-3], *reversed(lines[-3:])]))) == config


def test_a_schedule_is_one_setting_each_and_none_where_there_is_none():
    names = {name for name in flatten(from_table(tomllib.loads(TEXT))) if name.startswith("schedule")}
    assert names == {"schedule.views.size", "schedule.views.scale", "schedule.loss.temperature"}
    assert not any(name.startswith("schedule") for name in flatten(Config()))


def test_an_epoch_has_the_values_of_its_middle():
    """A step takes place at the nearest start of an epoch: 55 % of 20 epochs is 11, although the loader's epochs, which
    drop the last batch, are a little shorter."""
    base = from_table(tomllib.loads(TEXT))

    def sizes(epochs: int, num_images: int = 50_000) -> list[int]:
        train = dataclasses.replace(base.train, epochs=epochs, batch_size=256)
        config = dataclasses.replace(
            base, train=train, optim=dataclasses.replace(base.optim, warmup_epochs=0)
        )
        number = num_loader_epochs(num_images, epochs, 256)
        assert set(view_sizes(config, num_images)) == {24, 16} if epochs > 1 else {24}
        return [views_of_epoch(config, num_images, epoch)[0].size for epoch in range(number)]

    assert sizes(20) == 11 * [16] + 10 * [24]
    # one number stretches the recipe
    assert sizes(200)[:110] == 110 * [16] and set(sizes(200)[110:]) == {24}
    assert sizes(2) == [16, 24, 24]
    # a run shorter than its first step has the value that holds in the middle
    assert epoch_share(0, 50_000, 1, 256) == pytest.approx(0.5, abs=0.01)
    assert epoch_share(10**6, 50_000, 1, 256) == 1.0


def test_breakpoints_see_both_sides_of_a_step():
    shares = breakpoints([Scheduled("views.size", (0.0, 0.5), (16, 24))])
    assert shares[0] == 0.0 and shares[-1] == 1.0
    assert [share < 0.5 for share in shares] == [True, True, False, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "views.sizes = { at=[0], values=[24] }",
            r"unknown setting schedule.views.sizes; did you mean views.size",
        ),
        ("optim.base_lr = { at=[0], values=[1] }", r"unknown setting schedule.optim.base_lr"),
        ("views.size = 3", r"schedule.views.size is 3; it must be a table with at and values"),
        ("views.size = { at=[0], values=[24], to=3 }", r"schedule.views.size.to; there are at, values, kind"),
        ("views.size = { at=[], values=[] }", r"schedule.views.size: at is \(\)"),
        ("views.size = { at=[0,1.5], values=[16,24] }", r"views.size: at is .*shares of the run, 0 to 1"),
        ("views.size = { at=[0,nan], values=[16,24] }", r"views.size: at is .*shares of the run, 0 to 1"),
        ("views.size = { at=[0,0.5,0.5], values=[8,16,24] }", r"views.size: at is .* rising"),
        ("views.size = { at=[0.5], values=[24] }", r"views.size: at is \(0.5,\).* 0.0"),
        ("views.size = { at=[0,0.5], values=[24] }", r"views.size: values is .* 2 values"),
        (
            "views.size = { at=[0,0.5], values=[16,24.0] }",
            r"schedule.views.size.values is 24.0.* whole number",
        ),
        (
            "views.size = { at=[0,0.5], values=[16,24], kind='ramp' }",
            r"views.size.kind is 'ramp'.* steps, linear",
        ),
        ("views.size = { at=[0,0.5], values=[0,24] }", r"at 0 of the run: ViewSpec.size is 0"),
        ("views.size = { at=[0,0.5], values=[24,4097] }", r"at 0.5 of the run: ViewSpec.size is 4097"),
        ("views.size = { at=[0,0.5], values=[16,20] }", r"views.size is 24.*schedule.views.size 20.*equal"),
        (
            "views.size = { at=[0,0.5], values=[16,24], multiple_of=8 }",
            r"views.size: multiple_of is 8.*left out",
        ),
        (
            "views.size = { at=[0,0.5], values=[16,24], kind='linear', multiple_of=5 }",
            r"views.size: multiple_of is 5.*left out",
        ),
        ("views.gray_p = { at=[0,0.7], values=[0.1,1.2] }", r"at 0.7 of the run: ViewSpec.gray_p is 1.2"),
        ("views.scale = { at=[0], values=[[0.5,0.4]] }", r"at 0 of the run: ViewSpec.scale"),
        ("views.scale = { at=[0], values=[0.5] }", r"schedule.views.scale.values is 0.5.* list of 2 numbers"),
        ("views.mean = { at=[0], values=[[0.5,0.5,0.5]] }", r"schedule.views.mean can't change in a run"),
        ("views.num_views = { at=[0], values=[3] }", r"schedule.views.num_views can't change in a run"),
        ("loss.name = { at=[0], values=['nt_xent'] }", r"schedule.loss.name: values is"),
        ("loss.temperature = { at=[0,0.5], values=[0.1,0] }", r"at 0.5 of the run: loss.temperature is 0.0"),
        ("loss.temperature = { at=[0,0.5], values=[0.1,nan] }", r"loss.temperature: values is .* finite"),
        (
            '"views[0].gray_p" = { at=[0], values=[0.1] }',
            r"schedule.views\[0\].gray_p is no setting of this recipe",
        ),
    ],
)
def test_nonsense_is_refused_at_the_start(line, message):
    with pytest.raises(ValueError, match=message) as error:
        scheduled(line)
    assert "\n" not in str(error.value)


def test_what_only_python_can_ask_for():
    size = Scheduled("views.size", [0, 0.5], [16, 24])
    assert (size.at, size.values) == ((0.0, 0.5), (16, 24))
    with pytest.raises(ValueError, match=r"schedule.views.size is given twice"):
        Config(views=ViewSpec.simclr(24), schedule=(size, size))
    with pytest.raises(ValueError, match=r"views\[0\].size can't change in a run.*views.size"):
        Config(views=byol(24), schedule=(dataclasses.replace(size, name="views[0].size"),))
    with pytest.raises(ValueError, match=r"kind is 'ramp'"):
        dataclasses.replace(size, kind="ramp")


def test_the_phrases_for_the_user():
    config = from_table(tomllib.loads(TEXT))
    assert list(map(str, config.schedule)) == [
        "loss.temperature 0.1 at 20 % to 0.2 at 60 % to 0.4 at 100 %",
        "views.scale (0.5, 1) at 0 % to (0.3, 0.8) at 100 %",
        "views.size 16, 24 from 55 % on",
    ]


def test_a_size_of_the_command_line_must_fit_the_schedule(tmp_path, capsys):
    from fastclr.cli.main import main

    path = tmp_path / "r.toml"
    path.write_text(TEXT)
    assert load_recipe(str(path)).view_size == 24
    assert main(["train", str(path), "no.beton", "--views.size", "32"]) == 2
    error = capsys.readouterr().err
    assert "views.size is 32, and the largest of schedule.views.size 24" in error and error.count("\n") == 1
