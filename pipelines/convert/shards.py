"""Convert a source into a set of several files, the shards, and an index that marks the set as complete.

    source ─order─▶ images 0 … N−1 ─split at ⌊k·N/S⌋─▶ shard k ─▶ OUT-000kk-of-000SS.beton and its side-car
                                                          all S of them ─▶ OUT.json, the index

The shards in order contain the same images as a single file would.  The content of a shard depends only on the source,
the options and the shard's number.  The side-car of a shard is written last, so a shard with a side-car is complete.
Therefore a conversion that was killed can be resumed with the missing shards, and several machines can share the work.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.beton import BetonReader
from pipelines.beton.layout import set_fingerprint
from pipelines.beton.sets import MAX_SHARDS, shard_path
from pipelines.beton.sidecar import SET_FORMAT, check_sidecar_path, read_sidecar, write_sidecar
from pipelines.convert.encode import Encoding
from pipelines.convert.names_file import names_path
from pipelines.convert.run import Report, convert, numbers_in_order
from pipelines.convert.sources import Source

MACHINE_OPTIONS = frozenset({"max_memory_mb"})
"""Options that do not affect the bytes of a shard: the shards of a set may differ in them."""

NEEDED_KEYS = {"file_bytes", "fingerprint", "counts", "images_per_class", "versions", "skipped", "re_encoded"}
"""Keys of a side-car from which the index is made, besides those that identify the shard."""


@dataclass(frozen=True)
class ShardOptions:
    """Options for writing a set of several files.

    Raises:
        ValueError: an option is out of range or contradicts another one.
    """

    shards: int | None = None
    """Write a set of this many files, OUT-00000-of-000NN.beton and so on; None: one file."""
    shard: int | None = None
    """Write only the shard of this number, 0 to --shards − 1; the process that completes the set writes the index."""
    resume: bool = False
    """Write only those shards of the set that are missing or corrupt."""
    ray: str | None = None
    """Write the shards as tasks of the Ray cluster at this address, each with --workers processors; without an
    address: the cluster of RAY_ADDRESS or of this machine."""
    ray_memory_mb: int = 0
    """Memory in MB that each task of the Ray cluster reserves; 0: none."""

    def __post_init__(self) -> None:
        if self.shards is None:
            options = (
                ("shard", self.shard is not None),
                ("resume", self.resume),
                ("ray", self.ray is not None),
            )
            for name, given in options:
                if given:
                    raise ValueError(
                        f"--{name} is for sets of several files: give their number with --shards"
                    )
            return
        if not 1 <= self.shards <= MAX_SHARDS:
            raise ValueError(f"--shards must be 1 to {MAX_SHARDS:,}, got {self.shards}")
        if self.shard is not None and self.ray is not None:
            raise ValueError("--ray writes all shards of a set; leave out --shard")
        if self.ray_memory_mb < 0:
            raise ValueError(f"--ray-memory-mb must be at least 0, got {self.ray_memory_mb}")
        if self.shard is not None and not 0 <= self.shard < self.shards:
            raise ValueError(
                f"--shard must be 0 to {self.shards - 1} of {self.shards} shards, got {self.shard}"
            )


@dataclass(frozen=True)
class ShardedConversion:
    """Conversion of a source into a set of shards.

    Raises:
        ValueError: the source has fewer images than the set has shards.
    """

    source: Source
    out: Path
    """Name of the set, OUT.beton; the shards are named after it."""
    count: int
    """Number of shards."""
    encoding: Encoding
    order: Literal["shuffled", "source"] = "shuffled"
    seed: int = 0
    on_error: Literal["skip", "stop"] = "skip"
    image_field: str = "image"
    label_field: str = "label"

    def __post_init__(self) -> None:
        if len(self.source.labels) < self.count:
            raise ValueError(
                f"{len(self.source.labels)} images do not fill {self.count} shards; lower --shards"
            )

    @cached_property
    def numbers(self) -> np.ndarray:
        """Numbers of the source's images in the order of the set: int64 [N]."""
        return numbers_in_order(self.source, self.order, self.seed)

    def images(self, shard: int) -> np.ndarray:
        """Return the numbers of the source's images in a shard, in order."""
        first, end = (k * len(self.source.labels) // self.count for k in (shard, shard + 1))
        return self.numbers[first:end]

    def path(self, shard: int) -> Path:
        """Return the path of a shard."""
        return shard_path(self.out, shard, self.count)

    def write(
        self, shard: int, workers: int = 1, progress: Callable[[int], None] = lambda done: None
    ) -> Report:
        """Write a shard and its side-car; see `convert`."""
        try:
            return convert(
                self.source,
                self.path(shard),
                self.encoding,
                order=self.order,
                seed=self.seed,
                on_error=self.on_error,
                workers=workers,
                progress=progress,
                overwrite_names=True,  # `check_names` has checked them
                image_field=self.image_field,
                label_field=self.label_field,
                numbers=self.images(shard),
                about=self._identity(shard),
            )
        except ValueError as error:
            raise ValueError(f"{self.path(shard).name}: {error}") from error

    def written(self, shard: int, verify: bool = True) -> dict[str, Any] | None:
        """Return a shard's side-car; None if the shard is missing, corrupt or of another conversion.

        Args:
            shard: number of the shard.
            verify: whether to check all tables of the file and its fingerprint, not only its length.
        """
        path = self.path(shard)
        try:
            if verify:
                with BetonReader(path) as reader:
                    found = reader.sidecar
            else:
                found = read_sidecar(path)
        except (OSError, ValueError):
            return None
        usable = found is not None and found.keys() >= NEEDED_KEYS and self._difference(shard, found) is None
        return found if usable else None

    def check_same_conversion(self, shard: int) -> None:
        """Raise ValueError if the shard exists and was made from another source or with other options."""
        try:
            found = read_sidecar(self.path(shard))
        except (OSError, ValueError):
            return
        difference = None if found is None else self._difference(shard, found)
        if difference:
            raise ValueError(
                f"{self.path(shard)} is of another conversion ({difference}); choose another name, or --overwrite it"
            )

    def _difference(self, shard: int, sidecar: dict[str, Any]) -> str | None:
        """Return how the conversion of a side-car differs from this one; None if it does not differ."""
        for key, wanted in self._made_from(shard).items():
            found = sidecar.get(key)
            if not (isinstance(found, dict) and isinstance(wanted, dict)):
                if found != wanted:
                    return f"other {key}"
                continue
            for name in sorted((wanted.keys() | found.keys()) - MACHINE_OPTIONS):
                if found.get(name) != wanted.get(name):
                    return f"{key}: {name} {found.get(name)!r}, here {wanted.get(name)!r}"
        return None

    def write_index(self) -> dict[str, Any] | None:
        """Write the index if all shards are complete, and return it; None if some are not.

        The content of the index depends only on the shards.
        """
        # this check is cheap, which matters when many processes write one shard each
        if not all(self.path(shard).is_file() for shard in range(self.count)):
            return None
        sidecars = []
        for shard in range(self.count):
            sidecar = self.written(shard)
            if sidecar is None:
                return None
            sidecars.append(sidecar)
        index = _index(sidecars, [self.path(shard).name for shard in range(self.count)])
        # another process that found the set complete writes the same index
        with contextlib.suppress(BlockingIOError):
            write_sidecar(self.out, index)
        return index

    def missing(self) -> list[int]:
        """Return the numbers of the missing shards, according to their side-cars."""
        return [shard for shard in range(self.count) if self.written(shard, verify=False) is None]

    def _made_from(self, shard: int) -> dict[str, Any]:
        """Return the entries that a side-car must have if its shard belongs to this set."""
        options = {"order": self.order, "seed": self.seed, "on_error": self.on_error}
        return {
            "source": {"kind": self.source.kind, "name": self.source.name},
            "class_names": self.source.class_names,
            "options": {**asdict(self.encoding), **options},
            **self._identity(shard),
        }

    def _identity(self, shard: int) -> dict[str, Any]:
        return {"shard": {"number": shard, "of": self.count, **self._source_identity}}

    @cached_property
    def _source_identity(self) -> dict[str, Any]:
        """Number of images and hash of their labels, which distinguish this source from others of the same name."""
        labels = np.ascontiguousarray(self.source.labels, np.int64)
        digest = hashlib.blake2b(labels.tobytes(), digest_size=8).hexdigest()
        return {"source_images": len(labels), "source_labels": digest}


def check_names(conversion: ShardedConversion, shard: int | None, *, resume: bool, overwrite: bool) -> None:
    """Check, before the conversion starts, that no existing file prevents it from writing its files.

    Args:
        conversion: conversion to check.
        shard: number of the shard to write; None: all shards.
        resume: whether complete shards are kept.
        overwrite: whether all files are replaced.

    Raises:
        OSError: a file exists that must not be replaced.
        ValueError: a shard was made from another source or with other options.
    """
    out = conversion.out
    if out.exists():
        raise FileExistsError(f"{out} exists, and a set can't have the name of a file; choose another name")
    shards = range(conversion.count) if shard is None else [shard]
    for path in [out, *map(conversion.path, shards)]:
        check_sidecar_path(path)
    if overwrite:
        return
    for number in shards:
        path = conversion.path(number)
        if not any(file.exists() for file in (path, path.with_suffix(".json"), names_path(path))):
            continue
        if not resume:
            raise FileExistsError(
                f"{path} exists; --resume writes the shards that are missing, --overwrite replaces all"
            )
        conversion.check_same_conversion(number)


def convert_shards(
    conversion: ShardedConversion,
    shard: int | None = None,
    *,
    keep_complete: bool,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> list[int]:
    """Write the shards of a set one after the other, and its index once all shards exist.

    Args:
        conversion: conversion to run.
        shard: number of the only shard to write; None: all shards.
        keep_complete: whether to keep shards that exist and pass verification.
        workers: number of threads.
        progress: called with the number of images that are done, including those of complete shards.

    Returns:
        The numbers of the shards that this call wrote.

    Raises:
        ValueError, OSError: see `convert`; complete shards are kept.
    """
    shards = range(conversion.count) if shard is None else [shard]
    written, before = [], 0
    # an index of files that are about to be replaced would be wrong
    if not keep_complete:
        conversion.out.with_suffix(".json").unlink(missing_ok=True)
    for number in shards:
        if not (keep_complete and conversion.written(number) is not None):
            conversion.write(number, workers, lambda done, before=before: progress(before + done))  # type: ignore[misc]
            written.append(number)
        before += len(conversion.images(number))
        progress(before)
    conversion.write_index()
    return written


def report_of(sidecars: Iterable[dict[str, Any]]) -> Report:
    """Return the combined report of some shards, made from their side-cars."""
    total = Report(found=0)
    for sidecar in sidecars:
        for name in ("found", "kept", "transcoded", "encoded"):
            setattr(total, name, getattr(total, name) + sidecar["counts"][name])
        total.file_bytes += sidecar["file_bytes"]
        total.skipped |= sidecar["skipped"]
        for reason, names in sidecar["re_encoded"].items():
            total.re_encoded.setdefault(reason, []).extend(names)
    return total


def _index(sidecars: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Return the index of a set; the side-cars of the shards list the images that were left out, and why."""
    first = sidecars[0]
    per_class = [sidecar["images_per_class"] for sidecar in sidecars]
    return {
        "format": SET_FORMAT,
        "fingerprint": set_fingerprint([sidecar["fingerprint"] for sidecar in sidecars]),
        "file_bytes": sum(sidecar["file_bytes"] for sidecar in sidecars),
        "source": first["source"],
        "class_names": first["class_names"],
        **({"class_titles": first["class_titles"]} if "class_titles" in first else {}),
        "images_per_class": None if None in per_class else np.sum(per_class, axis=0).tolist(),
        "counts": {name: sum(sidecar["counts"][name] for sidecar in sidecars) for name in first["counts"]},
        "options": first["options"],
        "versions": first["versions"],
        "shards": [
            {
                "name": name,
                "images": sidecar["counts"]["written"],
                "file_bytes": sidecar["file_bytes"],
                "fingerprint": sidecar["fingerprint"],
            }
            for name, sidecar in zip(names, sidecars, strict=True)
        ],
    }
