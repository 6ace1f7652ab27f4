"""`fastclr preview FILE --out views.png`: a contact sheet of the augmented views of a file."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from fastclr.arguments import call


def main(argv: list[str]) -> None:
    """Draw the sheet and write it."""
    call(_preview, argv, "fastclr preview")


def _preview(
    file: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="FILE.beton", help="Images; `fastclr convert` makes the file."),
    ],
    out: Annotated[
        Path, tyro.conf.arg(help="Picture to write; its suffix is its format: .png, .jpg, .webp.")
    ],
    rows: Annotated[int, tyro.conf.arg(help="Images: the first of the epoch in a run with this seed.")] = 6,
    size: Annotated[int | None, tyro.conf.arg(help="Pixels of a view; None: the recipe's, else 224.")] = None,
    seed: Annotated[int | None, tyro.conf.arg(help="Seed of the run; None: the recipe's, else 0.")] = None,
    epoch: Annotated[int, tyro.conf.arg(help="Epoch of the run.")] = 0,
    indices: Annotated[
        tuple[int, ...],
        tyro.conf.arg(metavar="INT …", help="Show these images instead.", help_behavior_hint=""),
    ] = (),
    recipe: Annotated[
        str | None,
        tyro.conf.arg(help="What a run of this recipe sees (a name, a TOML file or a run folder)."),
    ] = None,
) -> None:
    """A contact sheet of the augmented views of a file.

    Per row: the source image with its two crop boxes, the two crops, the two augmented views, and the drawn
    numbers under them. Seed and epoch as in a training run show what that run sees.
    """
    from fastclr.config import Config
    from fastclr.preview import contact_sheet, draw_samples, save_picture
    from fastclr.recipes import load_recipe
    from pipelines import BetonReader, ViewSpec

    for name, value, least in (("rows", rows, 1), ("size", size, 1), ("epoch", epoch, 0)):
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}; it must be at least {least}")
    if recipe is None:
        config = Config(views=ViewSpec.simclr(size or 224))
    else:
        config = load_recipe(recipe)
    spec = dataclasses.replace(config.views, size=size or config.views.size)
    seed = config.train.seed if seed is None else seed
    with BetonReader(file) as reader:
        samples = draw_samples(
            reader,
            spec,
            rows=min(rows, len(reader)),
            seed=seed,
            epoch=epoch,
            order=config.data.order,
            indices=indices or None,
        )
    sheet = contact_sheet(samples, f"{file.name}: views of {spec.size} px, seed {seed}, epoch {epoch}")
    save_picture(sheet, out)
    print(f"{len(samples)} images, {sheet.width} × {sheet.height} px, written to {out}")
