"""Labelled subsets of a file for semi-supervised learning: a class-balanced fraction, or a list of names.

Chen et al. 2020 (arXiv 2002.05709), section 6: 1 % or 10 % of the images, "in a class-balanced way".  The authors
publish the names of theirs (`imagenet_subsets/1percent.txt` in google-research/simclr), one a line.
"""

from pathlib import Path

import numpy as np

from pipelines import BetonReader
from pipelines.convert.names_file import names_path, read_names
from pipelines.planner import epoch_order
from pipelines.system.terminal import printable

MAX_LIST_BYTES = 1 << 30
"""Maximum size of a list of names; that of all of ImageNet has 29 MB."""


def balanced_fraction(labels: np.ndarray, fraction: float, seed: int, where: str) -> np.ndarray:
    """Return samples of all classes, as many of each: round(fraction · N / C), or all of a smaller class.

    Args:
        labels: int [N]; samples with label −1 are never taken.
        fraction: above 0, up to 1; 1 takes all samples.
        seed: seed of the choice, which is a function of labels, fraction and seed alone.
        where: name of the file, for errors.

    Returns:
        int64, sorted.

    Raises:
        ValueError: no sample has a label, or a class would get no image.

    >>> balanced_fraction(np.arange(20) % 2, 0.2, 0, "file").size
    4
    """
    labelled = np.flatnonzero(labels >= 0)
    if not len(labelled):
        raise ValueError(f"{where} has no labels, which fine-tuning needs")
    if fraction == 1:
        return labelled
    classes = np.unique(labels[labelled])
    per_class = round(fraction * len(labelled) / len(classes))
    if per_class < 1:
        raise ValueError(
            f"{fraction:g} of {len(labelled)} images leaves none for each of {len(classes)} classes; the fraction must "
            f"be at least {0.5 * len(classes) / len(labelled):.2g}"
        )
    order = epoch_order(len(labels), seed, 0)
    chosen = [order[labels[order] == number][:per_class] for number in classes]
    return np.sort(np.concatenate(chosen))


def listed_samples(reader: BetonReader, path: Path) -> np.ndarray:
    """Return the samples that a list of names means, by the names that `fastclr convert` wrote beside the file.

    A name matches one that is equal or, failing that, the one whose last part is equal (the authors' lists have file
    names without folders).

    Returns:
        int64, sorted.

    Raises:
        ValueError: a file without names; a name that no image or several images have; a list without names.
        OSError: the list can't be read.
    """
    names = _names(reader)
    wanted = _lines(path)
    by_name = {name: number for number, name in enumerate(names)}
    by_last: dict[str, int] = {}
    for number, name in enumerate(names):
        last = name.rpartition("/")[2]
        by_last[last] = -1 if last in by_last else number
    found = [by_name.get(name, by_last.get(name)) for name in wanted]
    missing = [name for name, number in zip(wanted, found, strict=True) if number is None]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(wanted)} names are in no image of {reader.path}, the first is "
            f"{printable(missing[0], 80)!r}; they must be names of {names_path(reader.path).name}, or their last parts"
        )
    several = [name for name, number in zip(wanted, found, strict=True) if number == -1]
    if several:
        raise ValueError(
            f"{path}: {printable(several[0], 80)!r} is the last part of several names of {reader.path}; give them with "
            "their folders"
        )
    samples = np.unique(np.array(found, np.int64))
    unlabelled = int((reader.labels[samples] < 0).sum())
    if unlabelled:
        raise ValueError(f"{path}: {unlabelled} of the images in it have no label in {reader.path}")
    return samples


def _names(reader: BetonReader) -> list[str]:
    try:
        names = [name for file in reader.files for name in read_names(file)]
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename} is missing: a list needs the names that `fastclr convert` writes beside a file"
        ) from None
    if len(names) != len(reader):
        raise ValueError(
            f"{names_path(reader.path)} has {len(names)} names for the {len(reader)} images of {reader.path}; convert "
            "again"
        )
    return names


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > MAX_LIST_BYTES:
        raise ValueError(f"{path} has more than {MAX_LIST_BYTES >> 20} MiB, and is no list of names")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8, one name a line") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} names no image")
    return lines
