"""`fastclr preview FILE --out views.png`: a contact sheet of the augmented views of a file."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastclr.arguments import DataSet, FieldNames, Fields, data_set, parse
from pipelines.system.terminal import printable
from pipelines.views import ViewSpec


@dataclass(frozen=True)
class Arguments:
    """Draw a contact sheet of the augmented views of a file.

    Per row: the source image with its crop boxes, the crops, the augmented views, and the drawn numbers under them.
    Seed and epoch as in a training run show what that run sees.
    """

    files: DataSet
    """Images; `fastclr convert` makes the file, or the files of a set."""
    out: Path
    """Picture to write; its suffix is its format: .png, .jpg, .webp."""
    rows: int = 6
    """Number of images: the first of the epoch in a run with this seed."""
    size: int | None = None
    """Side length of a view in pixels, for views of one size; None: the recipe's, else 224."""
    seed: int | None = None
    """Seed of the run; None: the recipe's, else 0."""
    epoch: int = 0
    """Epoch of the run."""
    indices: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT …", help_behavior_hint="")] = ()
    """Show these images instead."""
    recipe: str | None = None
    """Show what a run of this recipe sees (a name, a TOML file or a run folder)."""
    fields: Fields = field(default_factory=FieldNames)


def main(argv: list[str]) -> None:
    """Draw the sheet and write it."""
    arguments = parse(Arguments, argv, "fastclr preview")
    _check(arguments)
    from fastclr.config import Config
    from fastclr.preview import contact_sheet, draw_samples, save_picture
    from fastclr.recipes import load_recipe
    from fastclr.train.build import view_sizes, views_of_epoch
    from pipelines import BetonReader

    if arguments.recipe is None:
        config = Config(views=ViewSpec.simclr(arguments.size or 224))
    else:
        config = load_recipe(arguments.recipe)
    config = config.with_fields(*arguments.fields)
    seed = config.train.seed if arguments.seed is None else arguments.seed
    with BetonReader(data_set(arguments.files), *config.field_names) as reader:
        specs = _resized(views_of_epoch(config, len(reader), arguments.epoch), arguments.size)
        samples = draw_samples(
            reader,
            specs,
            rows=min(arguments.rows, len(reader)),
            seed=seed,
            epoch=arguments.epoch,
            order=config.data.order,
            indices=arguments.indices or None,
        )
        num_images = len(reader)
    title = f"{reader.path.name}: views of {_sizes(specs)} px, seed {seed}, epoch {arguments.epoch}"
    sheet = contact_sheet(samples, title)
    save_picture(sheet, arguments.out)
    print(f"{len(samples)} images, {sheet.width} × {sheet.height} px, written to {printable(arguments.out)}")
    if config.schedule:
        sizes = ", ".join(map(str, view_sizes(config, num_images)))
        print(f"schedule: {'; '.join(map(str, config.schedule))}; views of {sizes} px in the whole run")


def _sizes(specs: tuple[ViewSpec, ...]) -> str:
    """Return the sizes of the views without repetitions: "224 and 96"."""
    return " and ".join(dict.fromkeys(f"{spec.size}" for spec in specs))


def _resized(specs: tuple[ViewSpec, ...], size: int | None) -> tuple[ViewSpec, ...]:
    """Return the specs with another size.

    Raises:
        ValueError: they have several sizes.
    """
    if size is None:
        return specs
    if len({spec.size for spec in specs}) > 1:
        raise ValueError(f"--size is {size}, but the recipe has views of {_sizes(specs)} px; leave it out")
    return tuple(dataclasses.replace(spec, size=size) for spec in specs)


def _check(arguments: Arguments) -> None:
    for name, minimum in (("rows", 1), ("size", 1), ("epoch", 0)):
        value = getattr(arguments, name)
        if value is not None and value < minimum:
            raise ValueError(f"--{name} is {value}; it must be at least {minimum}")
