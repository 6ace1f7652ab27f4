"""Extracts the features of a file of any size into a file, and continues where a killed process stopped.

While features are extracted, a hidden folder beside the result holds

    features.f32   the rows so far, float32 [rows, D], in the order of the data
    state.json     how many of them are on the disk for certain, and of which encoder and data

A row of a corrupt image, which has no features, is NaN.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclr.evaluate.encoder import FrozenEncoder, progress_bar
from fastclr.evaluate.features import feature_batches
from pipelines import BetonReader
from pipelines.contracts import Batch
from pipelines.system.atomic_file import replacing, write_at
from pipelines.system.cpus import cores
from pipelines.system.threads import at_most_threads

try:
    import fcntl
except ImportError:  # not Unix: two processes that write the same result are not noticed
    fcntl = None  # type: ignore[assignment]

FORMAT = "fastclr features 1"
SAVE_INTERVAL_S = 2.0
"""Time between two records of the progress: at most this much work is lost."""


@dataclass(frozen=True, eq=False)
class Stored:
    """Features on the disk."""

    rows: np.ndarray
    """float32 [N, D], mapped into memory; NaN where the image is corrupt."""
    resumed_at: int
    """Rows that were there before."""


def store_features(
    model: FrozenEncoder, reader: BetonReader, folder: Path, identity: dict[str, Any]
) -> Stored:
    """Extract the features of the centre of every image into `folder`, and continue what it holds already.

    Args:
        model: the encoder; its batch size decides where the work is divided.
        reader: the images.
        folder: made if it is missing; its parent must exist.
        identity: what the features depend on, of JSON's types; features of another identity are replaced.

    Raises:
        OSError: the folder can't be written, or another process works in it.
        ValueError: features that are not finite; too many corrupt images.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:  # the error must name what the user asked for
        raise OSError(error.errno, error.strerror, str(folder.parent)) from None
    descriptor = os.open(folder / "features.f32", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, folder)
        done, width = _progress(folder, identity)
        first = done
        if not done:
            os.ftruncate(descriptor, 0)
        saved = time.monotonic()
        for rows in _remaining(model, reader, done):
            width = rows.shape[1]
            write_at(descriptor, rows.tobytes(), done * width * 4, folder / "features.f32")
            done += len(rows)
            if time.monotonic() - saved > SAVE_INTERVAL_S:
                _save(folder, descriptor, {"identity": identity, "rows": done, "width": width})
                saved = time.monotonic()
        _save(folder, descriptor, {"identity": identity, "rows": done, "width": width})
    finally:
        os.close(descriptor)
    rows = np.memmap(folder / "features.f32", np.float32, "r", shape=(len(reader), width))
    return Stored(rows, first)


def remove_store(folder: Path) -> None:
    """Remove the hidden folder, when the result is complete."""
    shutil.rmtree(folder, ignore_errors=True)


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"{folder}: another process is extracting these features; wait for its end"
        ) from None
    except OSError:  # a file system without locks
        return


def _progress(folder: Path, identity: dict[str, Any]) -> tuple[int, int]:
    """Return how many rows are on the disk for certain, and their width."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if state["format"] == FORMAT and state["identity"] == identity:
            size = (folder / "features.f32").stat().st_size
            rows, width = int(state["rows"]), int(state["width"])
            return (rows, width) if size >= rows * width * 4 else (0, 0)
        return 0, 0
    # nothing was begun, or the state is corrupt
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0, 0


def _save(folder: Path, descriptor: int, state: dict[str, Any]) -> None:
    # the rows are on the disk before the state counts them
    os.fsync(descriptor)
    path = folder / "state.json"
    with replacing(path) as file:
        write_at(file, json.dumps({"format": FORMAT, **state}).encode(), 0, path)


def _remaining(model: FrozenEncoder, reader: BetonReader, done: int) -> Iterator[np.ndarray]:
    """Yield the features of each batch from sample `done` on, which is where a batch begins."""
    if done == len(reader):
        return
    samples = np.arange(done, len(reader))
    found: list[torch.Tensor] = []

    def noting(loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in loader:
            found.append(batch.indices)
            yield batch

    with (
        model.loader(reader, model.center(), indices=samples) as loader,
        progress_bar() as bar,
        # torch counts the cores of the machine, of which a container may have only some
        at_most_threads(cores()),
    ):
        loader.set_epoch(0)
        batches = feature_batches(model.encoder, noting(loader), device=model.device, autocast=model.autocast)
        for h, _ in bar.track(batches, len(loader), description="features"):
            rows = h.float().cpu().numpy()
            if not np.isfinite(rows).all():
                raise ValueError(
                    "the encoder gives features that are not finite (NaN or infinite): its training failed"
                )
            # a corrupt image is replaced by another, which has a row of its own
            wanted = np.arange(done, done + len(rows))
            rows[found.pop().numpy() != wanted] = np.nan
            done += len(rows)
            yield rows
