"""Recipes and config: what a TOML says is what a run gets, and a slip of the pen is named."""

import dataclasses
import tomllib
from typing import get_args, get_type_hints

import pytest

from fastclr.config import Config, DataConfig, OptimConfig, flatten
from fastclr.optim import scaled_lr
from fastclr.recipes import RECIPES_DIR, from_table, load_recipe, recipe_names, to_toml
from fastclr.schedule import Scheduled
from pipelines.views import ViewSpec


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_loads_and_survives_the_way_through_toml(name):
    config = load_recipe(name)
    assert from_table(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_header_tells_what_a_user_asks(name):
    header = (RECIPES_DIR / f"{name}.toml").read_text("utf-8").split("\n\n[")[0]
    for word in (f"fastclr train {name} ", "hardware", "wall time", "accuracy"):
        assert word in header, f"{name}: the header says nothing of {word!r}"


def test_cifar_recipe_has_the_authors_settings():
    config = load_recipe("cifar10-rn18")
    assert config.views == ViewSpec.simclr(32, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
    assert (config.views.jitter_strength, config.views.blur_p) == (0.5, 0.0)
    assert (config.model.depth, config.model.head_layers, config.loss.temperature) == (18, 3, 0.5)
    assert (config.optim.name, config.optim.form, config.optim.weight_decay) == ("lars", "authors", 1e-4)
    assert (config.train.epochs, config.optim.warmup_epochs) == (1000, 10)
    assert scaled_lr(config.optim.base_lr, config.train.batch_size, config.optim.scaling) == 2.0


def test_both_imagenet_recipes_have_a_learning_rate_of_4_8_at_the_papers_batch():
    for name in ("imagenet-rn50-100ep", "imagenet-rn50-100ep-sqrt"):
        config = load_recipe(name)
        assert scaled_lr(config.optim.base_lr, 4096, config.optim.scaling) == pytest.approx(4.8)
        assert (config.views, config.loss.temperature) == (ViewSpec.simclr(224), 0.1)
    assert load_recipe("imagenet-rn50-100ep").train.batch_size == 4096


def test_a_recipe_file_overrides_only_what_it_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 3\n[optim]\nwarmup_epochs = 1\nbase_lr = 1\n[views]\nsize = 32\n")
    config = load_recipe(str(path))
    changed = {name for name, value in flatten(config).items() if value != flatten(Config())[name]}
    # at 32 pixels SimCLR has no blur and half the jitter
    assert changed == {
        *("train.epochs", "optim.warmup_epochs", "optim.base_lr"),
        *("views.size", "views.jitter_strength", "views.blur_p"),
    }
    assert config.optim.base_lr == 1.0
    assert isinstance(config.optim.base_lr, float)


VIEW_TABLES = """
[[views]]
size = 32
num_views = 1
blur_p = 1

[[views]]
views = 1
jitter = [0.4, 0.4, 0.2, 0.1]
solarize_p = 0.2

[[views]]
size = 96
num_views = 6

[train]
epochs = 20
"""


def test_several_tables_of_views():
    """Each is read as one [views] is: old names, and SimCLR's values for its own size."""
    config = from_table(tomllib.loads(VIEW_TABLES))
    jitter = (0.4, 0.4, 0.2, 0.1)
    assert config.views == (
        ViewSpec(size=32, num_views=1, jitter_strength=0.5, blur_p=1.0),
        ViewSpec(size=224, num_views=1, jitter=jitter, solarize_p=0.2),
        ViewSpec(size=96, num_views=6),
    )
    assert (config.view_specs, config.view_size) == (config.views, 32)
    settings = flatten(config)
    assert (settings["views[1].jitter"], settings["views[2].size"]) == (jitter, 96)
    assert not any(name.startswith("views.") for name in settings)
    written = to_toml(config)
    assert written.count("[[views]]") == 3 and "[views]\n" not in written.replace("[[views]]", "")
    assert from_table(tomllib.loads(written)) == config


def test_one_table_of_several_is_one():
    spec = {"size": 48, "blur_p": 0.1}
    one = from_table({"views": spec})
    assert from_table({"views": [spec]}) == one == Config(views=[one.views])
    assert one.view_specs == (one.views,)
    assert to_toml(one).count("[views]") == 1 and "[[" not in to_toml(one)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"train": {"epoch": 5}}, "unknown key train.epoch; did you mean train.epochs?"),
        ({"optim": {"batch_size": 5}}, "unknown key optim.batch_size; did you mean train.batch_size?"),
        ({"trian": {}}, r"unknown section \[trian\]; did you mean train?"),
        ({"epochs": 5}, r"unknown section \[epochs\]; did you mean train.epochs?"),
        ({"train": 5}, r"train is 5; it must be a section, \[train\]"),
        ({"train": {"epochs": "ten"}}, "train.epochs is 'ten'; it must be a whole number"),
        ({"train": {"epochs": True}}, "train.epochs is True; it must be a whole number"),
        ({"train": {"epochs": 0}}, "train.epochs is 0; it must be at least 1"),
        ({"train": {"batch_size": 1}}, "train.batch_size is 1; .*negatives"),
        ({"loss": {"temperature": float("nan")}}, "loss.temperature is nan; it must be positive"),
        ({"optim": {"name": "lamb"}}, "optim.name is 'lamb'; it must be one of lars, muon, sgd, adamw"),
        ({"views": {"mean": [0.5, 0.5]}}, r"views.mean is \[0.5, 0.5\]; it must be a list of 3 numbers"),
        ({"views": []}, r"views is \[\]; it must be a section, \[views\] \(or several, \[\[views\]\]\)"),
        ({"views": [{}, 5]}, r"views is a list of 2; it must be a section, \[views\]"),
        ({"views": [{}, {"blurp": 1}]}, r"unknown key views\[1\].blurp; did you mean views\[1\].blur_p\?"),
        ({"views": [{"epochs": 1}, {}]}, r"unknown key views\[0\].epochs; did you mean train.epochs\?"),
        ({"views": [{}, {"size": 9.5}]}, r"views\[1\].size is 9.5; it must be a whole number"),
        ({"views": [{}, {"blur_p": 2}]}, r"views\[1\]: ViewSpec.blur_p is 2.0; it must be a probability"),
        ({"views": [{}, {"mean": [0.5, 0.5, 0.5]}]}, "views must have one mean"),
        ({"views": [{}] * 33}, "views must be at most 64"),
        ({"train": [{}]}, r"train is a list of 1; it must be a section, \[train\]$"),
        ({"train": {"epochs": 5}}, "optim.warmup_epochs is 10.0; it must be at most train.epochs, 5"),
    ],
)
def test_bad_recipe_is_named(table, message):
    with pytest.raises(ValueError, match=message):
        from_table(table)


def test_recipe_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepoch = 3\n")
    with pytest.raises(ValueError, match=r"mine.toml: unknown key train.epoch; did you mean train.epochs\?"):
        load_recipe(str(path))
    path.write_text("[train\n")
    with pytest.raises(ValueError, match=r"mine.toml: not valid TOML"):
        load_recipe(str(path))
    with pytest.raises(ValueError, match=r"no recipe 'cifar11'; there are .*cifar10-rn18"):
        load_recipe("cifar11")
    with pytest.raises(FileNotFoundError):
        load_recipe(str(tmp_path / "other.toml"))


def test_every_setting_has_a_docstring():
    """A string under each field: `fastclr train --help` shows it."""
    import inspect

    for section in dataclasses.fields(Config):
        cls = Scheduled if section.name == "schedule" else type(getattr(Config(), section.name))
        source = inspect.getsource(cls)
        for key in dataclasses.fields(cls):
            line = next(
                n for n, text in enumerate(source.splitlines()) if text.startswith(f"    {key.name}:")
            )
            assert '"""' in source.splitlines()[line + 1], f"{section.name}.{key.name} has no explanation"


def test_names_spelled_out_elsewhere_agree():
    """They are types, for `--help` to list them at once."""
    from benchmarks.loaders.bench import Options
    from fastclr.optim.lars.optimizer import IMPLS
    from pipelines.engines import ENGINES, EngineName

    engines, impls = get_type_hints(DataConfig)["engine"], get_type_hints(OptimConfig)["impl"]
    assert get_args(EngineName) == tuple(ENGINES)
    assert get_args(engines) == ("auto", *ENGINES)
    assert get_args(get_args(get_type_hints(Options)["engines"])[0]) == tuple(ENGINES)
    assert get_args(impls) == IMPLS


@pytest.mark.parametrize("setting", ["train.checkpoint_minutes", "loss.temperature", "optim.base_lr"])
def test_numbers_are_finite(setting):
    """TOML knows inf and nan, but no run that could be written down and taken up again."""
    section, key = setting.split(".")
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{setting} is (inf|nan)"):
            from_table({section: {key: value}})
    with pytest.raises(ValueError, match="blur_sigma"):
        from_table({"views": {"blur_sigma": [0.1, float("inf")]}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepochs = " + "9" * 400, r"train.epochs is a number of about 40\d digits"),
        ("[optim]\nbase_lr = -" + "9" * 400, r"optim.base_lr is a number of about 40\d digits"),
        ("[train]\nepochs = " + "9" * 5000, "not valid TOML"),
        ("[train]\nseed = 18446744073709551616", "train.seed is a number of"),
        ("[optim]\nbase_lr = 1e400", "optim.base_lr is inf; it must be finite"),
        ("views = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("views = " + "[" * 50 + "]" * 50, "views is a list of 1"),
        ("train" + ".a" * 3000 + " = 1", "unknown key train.a"),
        ("[model]\nstem = [[[]]]", "model.stem is a list of 1; it must be one of auto, imagenet"),
        ("[model]\nstem = {a = 1}", "model.stem is a table"),
        ("[train]\ndevice = 1979-05-27", "train.device is datetime"),
        ('[train]\n"\\u001b[31m" = 1', r"unknown key train.\\x1b\[31m"),
        ("#" * (1 << 20) + "\n", "more than 1 MiB"),
    ],
)
def test_hostile_recipes_get_one_line(tmp_path, text, message):
    path = tmp_path / "hostile.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


def test_a_whole_number_from_the_command_line_has_the_same_bound():
    with pytest.raises(ValueError, match=r"train.epochs is a number of more than 20 digits"):
        Config(train=dataclasses.replace(Config().train, epochs=10**400))
