"""The demo: the whole way from a folder of images to an evaluated encoder, and a report of it.

OUT/drawn/{train,test}   the drawn pictures, in class folders
OUT/{train,test}.beton   the converted files, each with its side-car
OUT/views.png            the contact sheet
OUT/run                  the training run
OUT/report.html          the report
"""

import dataclasses
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from signal import Signals

import torch
from rich.console import Console

from fastclr import __version__
from fastclr.config import Config
from fastclr.demo.images import split_folder
from fastclr.demo.measure import Measured, gallery, measure, num_neighbours
from fastclr.demo.report import Report, Stage, render
from fastclr.demo.shapes import SHAPES, draw_folder
from fastclr.device import pick_device
from fastclr.evaluate.encoder import Frozen
from fastclr.preview import contact_sheet, draw_samples, save_picture
from fastclr.recipes import load_recipe, to_toml
from fastclr.train.build import make_model, resolve
from fastclr.train.checkpoint import atomic_write, load_encoder
from fastclr.train.loop import train
from fastclr.train.run import FILES
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader
from pipelines.convert import Source, convert, open_source
from pipelines.system.cpus import cores

DRAWN = 4000
"""Training pictures that are drawn, and that the recipe's epochs are meant for."""
MINUTES = 2.0
"""What the recipe takes for them on two CPU cores, roughly."""


@dataclass(frozen=True)
class Settings:
    """What the user chooses."""

    data: Path | None = None
    """Your images: one folder per class, or all in one folder; None draws some."""
    out: Path = Path("demo")
    """Folder for everything that is made; what an earlier demo left there is replaced."""
    minutes: float = MINUTES
    """About how long to train, on two CPU cores; faster machines take less."""
    images: int = DRAWN
    """Training pictures to draw; a quarter as many are drawn for testing."""
    recipe: str = "demo"
    """Recipe, or path of a TOML file; its epochs are meant for 4000 images and scaled to the number there is."""
    seed: int = 0
    """Of the pictures, the split, the initial weights and the views."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; it must be positive")
        if self.images < 20:
            raise ValueError(f"images is {self.images}; the demo needs at least 20")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")


@dataclass
class Clock:
    """Times the stages and tells the user of them."""

    console: Console
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Yields a list, to which the body appends what there is to say."""
        self.console.print(f"[bold]{name}[/bold]")
        start, notes = time.perf_counter(), list[str]()
        yield notes
        self.stages.append(Stage(name, time.perf_counter() - start, ", ".join(notes)))
        self.console.print(f"  {self.stages[-1].seconds:.1f} s: {self.stages[-1].note}")


@dataclass(frozen=True)
class Done:
    """How the demo ended."""

    page: Path | None
    """The report; None if a signal ended the training."""
    before: Measured
    after: Measured | None
    stopped_by: Signals | None = None


def run_demo(settings: Settings, console: Console) -> Done:
    """Draw (or take the user's images), convert, preview, train, evaluate before and after, report.

    Raises:
        ValueError, OSError: the folder of images is missing or has too few; `out` is not writable.
    """
    clock, out = Clock(console), settings.out
    config = load_recipe(settings.recipe)
    out.mkdir(parents=True, exist_ok=True)
    images, *sources = _sources(settings, clock)
    files = out / "train.beton", out / "test.beton"
    with clock.stage("convert") as notes:
        start = time.perf_counter()
        reports = [
            convert(source, file, workers=cores(), seed=settings.seed)
            for source, file in zip(sources, files, strict=True)
        ]
        written = sum(report.written for report in reports)
        notes.append(f"{written / (time.perf_counter() - start):,.0f} images/s")
        skipped = sum(len(report.skipped) for report in reports)
        notes.extend([f"{skipped} unreadable images left out"] if skipped else [])

    with BetonReader(files[0]) as train_file, BetonReader(files[1]) as test_file:
        config = fit_to_images(config, len(train_file), settings.minutes, settings.seed)
        device = pick_device(config.train.device, option="--train.device")
        config = resolve(config, train_file, device)
        with clock.stage("preview") as notes:
            samples = draw_samples(train_file, config.views, rows=min(4, len(train_file)), seed=settings.seed)
            sheet = contact_sheet(samples, f"{config.views.size} px views, seed {settings.seed}, epoch 0")
            save_picture(sheet, out / "views.png")
            notes.append(f"{out / 'views.png'}")

        with clock.stage("evaluate random weights") as notes:
            torch.manual_seed(config.train.seed)  # as the training does: these are the weights it starts from
            encoder = make_model(config.model, config.views.size).encoder
            before = measure(_frozen(encoder, config, device), train_file, test_file)
            notes.append(_summary(before, train_file))

        with clock.stage("train") as notes:
            _clear_run(out / "run")
            outcome = train(config, files[0], out / "run")
            notes.append(f"{outcome.images_per_s:,.0f} images/s, {outcome.data_wait:.1%} waiting for data")
        if outcome.stopped_by is not None:
            return Done(None, before, None, outcome.stopped_by)

        with clock.stage("evaluate trained weights") as notes:
            encoder, _ = load_encoder(out / "run")
            after = measure(_frozen(encoder, config, device), train_file, test_file)
            notes.append(_summary(after, train_file))

        num_classes = max(1, int(train_file.labels.max()) + 1)
        names = train_file.class_names or [f"class {label}" for label in range(num_classes)]
        report = Report(
            images=images,
            training=f"{_plural(config.train.epochs, 'epoch')} of SimCLR on {_hardware(config)}",
            train_seconds=next(stage.seconds for stage in clock.stages if stage.name == "train"),
            metrics=read_metrics(out / "run"),
            images_per_s=outcome.images_per_s,
            data_wait=outcome.data_wait,
            class_names=names[:num_classes],
            chance=1 / num_classes,
            scores=(before.scores, after.scores) if before.scores and after.scores else None,
            gallery=gallery(train_file, test_file, before, after),
            sheet=sheet,
            stages=clock.stages,
            commands=_commands(settings, config, after.scores is not None),
            environment=_environment(config),
            recipe=to_toml(config),
        )
    with atomic_write(out / "report.html") as file:
        file.write(render(report).encode())
    return Done(out / "report.html", before, after)


def fit_to_images(config: Config, num_images: int, minutes: float, seed: int) -> Config:
    """The recipe for another number of images and another time: as many images pass by, scaled by the time.

    >>> recipe = Config()  # 100 epochs of 4000 images in two minutes, batches of 4096
    >>> fitted = fit_to_images(recipe, num_images=1000, minutes=1.0, seed=0)
    >>> fitted.train.epochs, fitted.train.batch_size
    (200, 1000)
    """
    ratio = DRAWN / num_images * minutes / MINUTES
    epochs = max(1, round(config.train.epochs * ratio))
    warmup = config.optim.warmup_epochs * epochs / config.train.epochs
    batch_size = min(config.train.batch_size, num_images)
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, warmup_epochs=warmup),
        train=dataclasses.replace(config.train, epochs=epochs, batch_size=batch_size, seed=seed),
    )


def _sources(settings: Settings, clock: Clock) -> tuple[str, Source, Source]:
    """What to call the training images, they, and the test images."""
    if settings.data is not None:
        train_source, test_source = split_folder(settings.data, settings.seed)
        return (
            f"{len(train_source.labels):,} images of {settings.data.resolve().name}",
            train_source,
            test_source,
        )
    folders = [settings.out / "drawn" / part for part in ("train", "test")]
    counts = settings.images, max(len(SHAPES), settings.images // 4)
    with clock.stage("draw") as notes:
        for number, (folder, count) in enumerate(zip(folders, counts, strict=True)):
            draw_folder(folder, count, seed=2 * settings.seed + number, workers=cores())
        notes.append(f"{sum(counts):,} pictures of {len(SHAPES)} shapes")
    title = f"{counts[0]:,} drawn pictures of {len(SHAPES)} shapes"
    return title, open_source([str(folders[0])]), open_source([str(folders[1])])


def _frozen(encoder: torch.nn.Module, config: Config, device: torch.device) -> Frozen:
    views = {"size": config.views.size, "mean": config.views.mean, "std": config.views.std}
    autocast = torch.bfloat16 if config.train.precision == "bfloat16" else None
    return Frozen.from_meta(encoder, views, device, autocast=autocast)


def _summary(measured: Measured, train_file: BetonReader) -> str:
    if measured.scores is None:
        return "no labels (one folder per class gives them), so no accuracy"
    k = num_neighbours(torch.from_numpy(train_file.labels))
    return f"kNN (k = {k}) {measured.scores.knn:.1%}, linear probe {measured.scores.linear:.1%}"


def _clear_run(run: Path) -> None:
    """Remove the run of an earlier demo, and nothing else."""
    for path in [run / name for name in FILES] + list(run.glob("events.out.tfevents.*")):
        path.unlink(missing_ok=True)


def _hardware(config: Config) -> str:
    if config.train.device.startswith("cuda"):
        return torch.cuda.get_device_name(config.train.device)
    return _plural(config.train.threads or 1, "CPU thread")


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _environment(config: Config) -> list[tuple[str, str]]:
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2] for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0].strip() if names else processor
    packages = ("torch", "numpy", "numba", "simplejpeg")
    return [
        ("processor", f"{processor}, {_plural(cores(), 'core')}"),
        ("trained on", f"{_hardware(config)}, {config.train.precision}"),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        (
            "packages",
            ", ".join([f"fastclr {__version__}", *(f"{name} {version(name)}" for name in packages)]),
        ),
        ("date", time.strftime("%Y-%m-%d %H:%M")),
    ]


def _commands(settings: Settings, config: Config, labelled: bool) -> list[tuple[str, str]]:
    out, recipe = settings.out, settings.recipe
    epochs = f" --train.epochs {config.train.epochs}"
    source = f"{out}/drawn/train" if settings.data is None else "PHOTOS"
    lines = [
        ("images in folders, into one file", f"fastclr convert {source} photos.beton"),
        ("look at the views", f"fastclr preview photos.beton --recipe {recipe} --out views.png"),
        (
            "train, on the demo's file",
            f"fastclr train {recipe} --train {out}/train.beton --out runs/demo{epochs}",
        ),
    ]
    if labelled:
        files = f"--train {out}/train.beton --test {out}/test.beton"
        lines.append(("weighted kNN and linear probe", f"fastclr evaluate runs/demo {files}"))
    lines.append(("this page, of your own images", "fastclr demo --data PHOTOS"))
    return lines
