"""The demo: all steps from a folder of images to an evaluated encoder, and a report.

OUT/drawn/{train,test}   the drawn pictures, in class folders
OUT/{train,test}.beton   the converted files, each with its side-car
OUT/views.png            the contact sheet
OUT/run                  the training run
OUT/report.html          the report
"""

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

import torch
from PIL import Image
from rich.console import Console

from fastclr import __version__
from fastclr.config import Config
from fastclr.demo.fit import fit_epochs, step_seconds, with_epochs
from fastclr.demo.images import split_folder
from fastclr.demo.neighbours import Features, accuracy_per_class, extract, gallery, num_neighbours
from fastclr.demo.report import Report, Scores, Stage, render
from fastclr.demo.shapes import SHAPES, draw_folder
from fastclr.device import pick_device
from fastclr.evaluate.encoder import FrozenEncoder
from fastclr.evaluate.protocol import EvalConfig, evaluate_files
from fastclr.preview import contact_sheet, draw_samples, save_picture
from fastclr.recipes import load_recipe, to_toml
from fastclr.train.build import check_views, make_model, resolve, views_of_epoch
from fastclr.train.checkpoint import atomic_write, load_encoder
from fastclr.train.pretrain import train
from fastclr.train.run import FILES
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader
from pipelines.convert import Source, convert, open_source
from pipelines.system.cpus import cores
from pipelines.system.terminal import printable
from pipelines.system.versions import package_versions, processor_name

DRAWN = 4000
"""Number of training pictures that are drawn, for which the recipe's epochs are meant."""
MINUTES = 2.0
PROBE_EPOCHS, PROBE_PASSES = 40, 2
"""Epochs of the linear probe, and augmented passes that it trains on in turn: a third of the time of `evaluate`."""


@dataclass(frozen=True)
class Settings:
    """The user's settings."""

    data: Path | None = None
    """Your images: one folder per class, or all in one folder; None draws some."""
    out: Path = Path("demo")
    """Folder for all output; files of an earlier demo there are replaced."""
    minutes: float = MINUTES
    """Approximate maximum training time, minutes; a few steps are timed first to find the number of epochs that fit."""
    images: int = DRAWN
    """Training pictures to draw; a quarter as many are drawn for testing."""
    recipe: str = "demo"
    """Recipe, or path of a TOML file; its epochs are for 4000 images and 2 minutes, and are scaled to yours."""
    seed: int = 0
    """Seed of the pictures, the split, the initial weights and the views."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; it must be positive")
        if self.images < 20:
            raise ValueError(f"images is {self.images}; the demo needs at least 20")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")


@dataclass
class StageTimer:
    """Times the stages, and prints a line about each when it is done."""

    console: Console
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Yield a list, to which the body appends its remarks."""
        self.console.print(f"[bold]{name}[/bold]")
        start, notes = time.perf_counter(), list[str]()
        yield notes
        self.stages.append(Stage(name, time.perf_counter() - start, ", ".join(notes)))
        line = printable(f"  {self.stages[-1].seconds:.1f} s: {self.stages[-1].note}")
        # not wrapped, because a path that is broken over two lines can't be copied
        self.console.print(line, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo."""

    page: Path | None
    """The report; None if a signal ended the training."""
    scores: tuple[Scores, Scores] | None
    """Before and after; None without labels, or if a signal ended the training."""
    stopped_by: Signals | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Features and scores of an encoder on the demo's two files."""

    features: Features
    scores: Scores | None
    """None where pictures have no labels."""


def run_demo(settings: Settings, console: Console) -> DemoResult:
    """Draw (or take the user's images), convert, preview, train, evaluate before and after, report.

    Raises:
        ValueError, OSError: the folder of images is missing or has too few; `out` is not writable.
    """
    timer, out = StageTimer(console), settings.out
    config = load_recipe(settings.recipe)
    check_views(config)
    out.mkdir(parents=True, exist_ok=True)
    images, *sources = _sources(settings, timer)
    files = out / "train.beton", out / "test.beton"
    _convert(sources, files, settings.seed, timer)
    with BetonReader(files[0]) as train_file, BetonReader(files[1]) as test_file:
        device = pick_device(config.train.device, option="--train.device")
        config = resolve(
            for_images(config, len(train_file), settings.minutes, settings.seed), train_file, device
        )
        sheet = _preview(train_file, config, out / "views.png", timer)
        config, fitted = _fit(config, train_file, device, settings.minutes, timer)
        torch.manual_seed(config.train.seed)  # as the training does: these are the weights it starts from
        encoder = make_model(config.model, config.view_size).encoder
        before = _evaluate("random", encoder, config, device, train_file, test_file, timer)
        with timer.stage("train") as notes:
            _clear_run(out / "run")
            outcome = train(config, files[0], out / "run")
            notes.append(f"{outcome.images_per_s:,.0f} images/s, {outcome.data_wait:.1%} waiting for data")
        if outcome.stopped_by is not None:
            return DemoResult(None, None, outcome.stopped_by)
        encoder, _ = load_encoder(out / "run")
        after = _evaluate("trained", encoder, config, device, train_file, test_file, timer)
        scores = (before.scores, after.scores) if before.scores and after.scores else None
        report = Report(
            images=images,
            training=f"{_plural(config.train.epochs, 'epoch')} of SimCLR on {_hardware(config)}",
            fitted=fitted,
            train_seconds=next(stage.seconds for stage in timer.stages if stage.name == "train"),
            metrics=read_metrics(out / "run"),
            images_per_s=outcome.images_per_s,
            data_wait=outcome.data_wait,
            class_names=_class_names(train_file),
            scores=scores,
            gallery=gallery(train_file, test_file, before.features, after.features),
            sheet=sheet,
            stages=timer.stages,
            commands=_commands(settings, config, scores is not None),
            environment=_environment(config),
            recipe=to_toml(config),
        )
    with atomic_write(out / "report.html") as file:
        file.write(render(report).encode())
    return DemoResult(out / "report.html", scores)


def for_images(config: Config, num_images: int, minutes: float, seed: int) -> Config:
    """Return the recipe for another number of images and another time.

    The total number of images stays the same, times the ratio of the times.

    >>> recipe = Config()  # 100 epochs of 4000 images in 2 minutes, batches of 4096
    >>> fitted = for_images(recipe, num_images=1000, minutes=1.0, seed=0)
    >>> fitted.train.epochs, fitted.train.batch_size
    (200, 1000)
    """
    epochs = max(1, round(config.train.epochs * DRAWN / num_images * minutes / MINUTES))
    config = with_epochs(config, epochs)
    batch_size = min(config.train.batch_size, num_images)
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_size=batch_size, seed=seed)
    )


def _sources(settings: Settings, timer: StageTimer) -> tuple[str, Source, Source]:
    """Return a title for the training images, the training images, and the test images."""
    if settings.data is not None:
        train_source, test_source = split_folder(settings.data, settings.seed)
        name = settings.data.resolve().name
        return f"{len(train_source.labels):,} images of {name}", train_source, test_source
    folders = [settings.out / "drawn" / split for split in ("train", "test")]
    counts = settings.images, max(len(SHAPES), settings.images // 4)
    with timer.stage("draw") as notes:
        for number, (folder, count) in enumerate(zip(folders, counts, strict=True)):
            draw_folder(folder, count, seed=2 * settings.seed + number, workers=cores())
        notes.append(f"{sum(counts):,} pictures of {len(SHAPES)} shapes")
    title = f"{counts[0]:,} drawn pictures of {len(SHAPES)} shapes"
    return title, open_source([str(folders[0])]), open_source([str(folders[1])])


def _convert(sources: list[Source], files: tuple[Path, Path], seed: int, timer: StageTimer) -> None:
    with timer.stage("convert") as notes:
        start = time.perf_counter()
        reports = [
            convert(source, file, workers=cores(), seed=seed)
            for source, file in zip(sources, files, strict=True)
        ]
        written = sum(report.written for report in reports)
        notes.append(f"{written / (time.perf_counter() - start):,.0f} images/s")
        if skipped := sum(len(report.skipped) for report in reports):
            notes.append(f"{skipped} unreadable images left out")


def _preview(reader: BetonReader, config: Config, out: Path, timer: StageTimer) -> Image.Image:
    with timer.stage("preview") as notes:
        seed = config.train.seed
        specs = views_of_epoch(config, len(reader), 0)
        samples = draw_samples(reader, specs, rows=min(4, len(reader)), seed=seed)
        sheet = contact_sheet(samples, f"{specs[0].size} px views, seed {seed}, epoch 0")
        save_picture(sheet, out)
        notes.append(f"{out}")
    return sheet


def _fit(
    config: Config, reader: BetonReader, device: torch.device, minutes: float, timer: StageTimer
) -> tuple[Config, str]:
    """Return the config with as many epochs as fit into the time, and a sentence about their number."""
    with timer.stage("time a few training steps") as notes:
        seconds = step_seconds(config, reader, device)
        images_per_s = config.train.batch_size / seconds
        fitted = fit_epochs(config, len(reader), seconds, 60 * minutes)
        epochs, wanted = fitted.train.epochs, config.train.epochs
        measured = f"{images_per_s:,.0f} images/s"
        if epochs == wanted:
            said = f"At {measured}, the recipe's {_plural(wanted, 'epoch')} fit into {minutes:g} min."
        elif epochs > 1:
            said = f"At {measured}, {epochs} of the recipe's {_plural(wanted, 'epoch')} fit into {minutes:g} min."
        else:
            one = len(reader) / images_per_s / 60
            said = f"At {measured}, one epoch takes about {one:.1f} min, of {minutes:g} min that were wanted."
        notes.append(said.removesuffix("."))
    return fitted, said


def _evaluate(
    weights: str,
    encoder: torch.nn.Module,
    config: Config,
    device: torch.device,
    train_file: BetonReader,
    test_file: BetonReader,
    timer: StageTimer,
) -> Evaluation:
    """Extract features and, where all pictures have labels, measure kNN and a linear probe."""
    spec = config.view_specs[0]
    views = {"size": config.eval_size, "mean": spec.mean, "std": spec.std}
    autocast = torch.bfloat16 if config.train.precision == "bfloat16" else None
    with timer.stage(f"evaluate {weights} weights") as notes:
        model = FrozenEncoder.from_meta(encoder, views, device, autocast=autocast)
        features = extract(model, train_file, test_file)
        if min(int(train_file.labels.min()), int(test_file.labels.min())) < 0:
            notes.append("no labels (one folder per class gives them), so no accuracy")
            return Evaluation(features, None)
        k = num_neighbours(torch.from_numpy(train_file.labels))
        note: Callable[[str], None] = notes.append
        eval_config = EvalConfig(k=k, epochs=PROBE_EPOCHS, passes=PROBE_PASSES)
        found = evaluate_files(model, train_file, test_file, eval_config, note)
        knn, linear = found["knn"]["top1"], found["linear"]["top1"]
        notes.append(f"kNN (k = {k}) {knn:.1%}, linear probe {linear:.1%}")
        return Evaluation(features, Scores(knn, linear, accuracy_per_class(features, train_file, test_file)))


def _clear_run(run: Path) -> None:
    """Remove the run of an earlier demo, and nothing else."""
    for path in [run / name for name in FILES] + list(run.glob("events.out.tfevents.*")):
        path.unlink(missing_ok=True)


def _class_names(reader: BetonReader) -> list[str]:
    num_classes = max(1, int(reader.labels.max()) + 1)
    return (reader.class_names or [f"class {label}" for label in range(num_classes)])[:num_classes]


def _hardware(config: Config) -> str:
    if config.train.device.startswith("cuda"):
        return torch.cuda.get_device_name(config.train.device)
    return _plural(config.train.threads or 1, "CPU thread")


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _environment(config: Config) -> list[tuple[str, str]]:
    packages = package_versions("torch", "numpy", "numba", "simplejpeg")
    return [
        ("processor", f"{processor_name()}, {_plural(cores(), 'core')}"),
        ("trained on", f"{_hardware(config)}, {config.train.precision}"),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        (
            "packages",
            ", ".join(f"{name} {found}" for name, found in {"fastclr": __version__, **packages}.items()),
        ),
        ("date", time.strftime("%Y-%m-%d %H:%M")),
    ]


def _commands(settings: Settings, config: Config, labelled: bool) -> list[tuple[str, str]]:
    out, recipe = settings.out, settings.recipe
    source = f"{out}/drawn/train" if settings.data is None else "PHOTOS"
    training = f"fastclr train {recipe} --train {out}/train.beton --out runs/demo --train.epochs {config.train.epochs}"
    lines = [
        ("images in folders, into one file", f"fastclr convert {source} photos.beton"),
        ("look at the views", f"fastclr preview photos.beton --recipe {recipe} --out views.png"),
        ("train, on the demo's file", training),
    ]
    if labelled:
        files = f"--train {out}/train.beton --test {out}/test.beton"
        lines.append(("weighted kNN and linear probe", f"fastclr evaluate runs/demo {files}"))
    lines.append(("this page, of your own images", "fastclr demo --data PHOTOS"))
    return lines
