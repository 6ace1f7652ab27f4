"""TwoViewLoader: from a .beton file to batches of augmented views.

file ─▶ Sampler (order, draws) ─plans─▶ engine (decode, crop, flip) ─uint8 crops─▶ augmentation ─▶ Batch
"""

import json
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import Batch
from pipelines.engines import ENGINES
from pipelines.planner import Order, Sampler
from pipelines.prefetch import DeviceStage
from pipelines.system.cpus import cores
from pipelines.views import ViewSpec


class TwoViewLoader:
    """Batches of augmented views of the images of a `.beton` file.

    Every number that shapes a batch (order, crop boxes, color factors) is a pure function of seed, epoch and
    sample: the same for any engine, number of threads, world size, and after a resume.

    >>> from pipelines import TwoViewLoader                                          # doctest: +SKIP
    >>> with TwoViewLoader("train.beton", batch_size=256, size=224) as loader:       # doctest: +SKIP
    ...     for views, labels in loader:                                             # doctest: +SKIP
    ...         loss = step(views[0], views[1])                                      # doctest: +SKIP

    Args:
        file: a `.beton` file, or an open BetonReader (which then stays open when the loader closes).
        batch_size: images per batch on this rank; each gives `spec.num_views` views.
        size: height and width of a view in pixels, with SimCLR's augmentation (`ViewSpec.simclr`: at most 32
            pixels without blur and with half the color jitter, as for CIFAR-10); or give `spec`.
        spec: what a view looks like.
        engine: who decodes: a key of `pipelines.engines.ENGINES`.
        seed: 64-bit seed of order and views.
        rank, world_size: rank r of W holds rows [r·b, (r+1)·b) of each global batch.
        num_threads: worker threads; None takes the processors that this process may run on.
        device: where the views arrive: "cpu" (float32), "cuda" or "cuda:N" (half precision).
        order: "random"; "sequential"; or "blocks", for files larger than memory.
        drop_last: leave out the incomplete last batch; otherwise split it contiguously over the ranks.
        indices: use these samples only: their numbers, or a mask with a boolean per sample; None means all.
        dtype: of the views; None means float32 on the CPU, and on a GPU bfloat16 or, where its hardware lacks
            that, float16.
        engine_options: further keyword arguments of the engine's constructor.

    Raises:
        ValueError: a bad file or argument; the message says which.
        FileNotFoundError: no such file.
        EngineUnavailable: the engine's library or hardware is missing here.
    """

    def __init__(
        self,
        file: str | os.PathLike | BetonReader,
        batch_size: int,
        *,
        size: int | None = None,
        spec: ViewSpec | None = None,
        engine: str = "native",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int | None = None,
        device: str | torch.device = "cpu",
        order: Order = "random",
        drop_last: bool = True,
        indices: Sequence[int] | np.ndarray | None = None,
        dtype: torch.dtype | None = None,
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        batch_size = _whole("batch_size", batch_size)
        if size is not None:
            size = _whole("size", size)
        if size is not None and spec is not None:
            raise ValueError("give size or spec, not both: a spec has its own size")
        if engine not in ENGINES:
            raise ValueError(f"no engine {engine!r}; there are {', '.join(ENGINES)}")
        options = engine_options or {}
        known = list(signature(ENGINES[engine]).parameters)[4:]  # behind those that all have
        if unknown := [name for name in options if name not in known]:
            raise ValueError(
                f"engine {engine} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
            )
        if "prefetch" in options:
            _whole("prefetch", options["prefetch"])
        if num_threads is not None:
            num_threads = _whole("num_threads", num_threads)
        seed, rank = _whole("seed", seed, 0), _whole("rank", rank, 0)
        world_size = _whole("world_size", world_size)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be floating point, got {dtype!r}: views are normalised numbers")
        self._owns_reader = not isinstance(file, BetonReader)
        self.reader = file if isinstance(file, BetonReader) else BetonReader(Path(file))
        try:
            self.sampler = Sampler(
                heights=self.reader.heights,
                widths=self.reader.widths,
                spec=spec or ViewSpec.simclr(size or 224),
                batch_size=batch_size,
                seed=seed,
                order=order,
                rank=rank,
                world_size=world_size,
                drop_last=drop_last,
                subset=_subset(indices, len(self.reader)),
            )
            if not self.sampler.num_samples or (
                drop_last and batch_size * world_size > self.sampler.num_samples
            ):
                raise ValueError(
                    f"{self.reader.path}: {self.sampler.num_samples} samples do not fill one batch of "
                    f"{batch_size * world_size}; lower batch_size (or pass drop_last=False)"
                )
            self.device = _device(device)
            num_threads = num_threads or cores()
            self._stage = DeviceStage(self.device, dtype, num_threads)
            self._engine = ENGINES[engine](
                self.reader,
                self.sampler,
                num_threads=num_threads,
                device=self.device,
                **options,
            )
        except BaseException:
            if self._owns_reader:
                self.reader.close()
            raise
        self._closed = False
        self._running: weakref.WeakSet[Generator] = weakref.WeakSet()  # the engine's and the stage's
        self._epoch, self._consumed = 0, 0  # where the next __iter__ starts
        self._yielded = (0, 0)  # epoch and samples (over all ranks) after the batch last yielded

    @property
    def spec(self) -> ViewSpec:
        return self.sampler.spec

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return self.sampler.num_batches()

    def __iter__(self) -> Iterator[Batch]:
        epoch, consumed = self._epoch, self._consumed
        self._epoch, self._consumed = epoch + 1, 0
        return self._batches(self.sampler, epoch, consumed)

    def _batches(self, sampler: Sampler, epoch: int, consumed: int) -> Iterator[Batch]:
        self._check_open()
        # the engine keeps it for this iterator, whatever `set_epoch` says later
        self._engine.sampler = sampler
        global_batch = sampler.batch_size * sampler.world_size
        crops = self._engine.run(sampler.plans(epoch, consumed))
        batches = self._stage.run(crops, sampler.spec, self.reader.labels)
        self._running |= {batches, crops}
        try:
            for batch in batches:
                consumed = min(consumed + global_batch, sampler.num_samples)
                over = consumed == sampler.num_samples or (
                    sampler.drop_last and consumed + global_batch > sampler.num_samples
                )
                self._yielded = (epoch + 1, 0) if over else (epoch, consumed)
                yield batch
                self._check_open()
            self._check_open()  # or another thread has closed the generators meanwhile
            self._yielded = (epoch + 1, 0)  # on a rank that has no part of the tail, too
        finally:
            batches.close()
            crops.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the loader was closed")

    def set_epoch(self, epoch: int, spec: ViewSpec | None = None) -> None:
        """The next iteration is this epoch; with `spec`, from then on with other views (progressive size).

        Raises:
            ValueError: an epoch that has no numbers to draw: they are for 0 ≤ epoch < 2³².
        """
        self._epoch, self._consumed = self._yielded = (_epoch(epoch), 0)
        if spec is not None:
            self.sampler = replace(self.sampler, spec=spec)

    def state_dict(self) -> dict[str, Any]:
        """Where the receiver is: counted at the batch last yielded, whatever was prefetched beyond it."""
        epoch, consumed = self._yielded
        return {"epoch": epoch, "consumed": consumed, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there at the next iteration; another world size or batch size is fine.

        Raises:
            ValueError: it is no state of a loader, or one of another file, seed, order, spec or subset; the message
                says which.
        """
        if not isinstance(state, dict) or not state.keys() >= {"epoch", "consumed", *self._identity()}:
            raise ValueError(f"{self.reader.path}: cannot resume, this is not what state_dict() returned")
        epoch, consumed, all_samples = _epoch(state["epoch"]), state["consumed"], self.sampler.num_samples
        if not _is_whole(consumed) or not 0 <= consumed <= all_samples:
            raise ValueError(f"{self.reader.path}: cannot resume after {consumed!r} samples of {all_samples}")
        for name, ours in self._identity().items():
            if name == "fingerprint" and self.reader.matches_fingerprint(state[name]):
                continue
            if json.dumps(state[name]) != json.dumps(ours):  # a state may have been through JSON
                raise ValueError(
                    f"{self.reader.path}: cannot resume, the saved state has another {name}: "
                    f"{state.get(name)!r}, here {ours!r}"
                )
        self._epoch, self._consumed = self._yielded = epoch, int(consumed)

    def _identity(self) -> dict[str, Any]:
        """What must agree for a position to mean the same batches."""
        subset = self.sampler.subset
        return {
            "seed": self.sampler.seed,
            "order": self.sampler.order,
            "spec": asdict(self.sampler.spec),
            "fingerprint": self.reader.fingerprint,
            "indices": None if subset is None else sha256(subset.tobytes()).hexdigest()[:16],
        }

    def close(self) -> None:
        """Release threads and memory, and the file if the loader opened it; its iterators then raise RuntimeError."""
        self._closed = True
        for generator in list(self._running):
            with suppress(ValueError):  # another thread is in it
                generator.close()
        self._engine.close()
        if self._owns_reader:
            self.reader.close()

    def __enter__(self) -> "TwoViewLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _whole(name: str, value: Any, least: int = 1) -> int:
    if not _is_whole(value) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    return int(value)


def _epoch(value: Any) -> int:
    if not _is_whole(value) or not 0 <= value < 1 << 32:
        raise ValueError(f"epoch must be in [0, 2**32) and whole, got {value!r}")
    return int(value)


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}") from None


def _subset(indices: Sequence[int] | np.ndarray | None, num_samples: int) -> np.ndarray | None:
    if indices is None:
        return None
    indices = np.asarray(indices)
    if indices.ndim != 1 or not indices.size:
        raise ValueError(
            f"indices must be a list of samples, at least one; got an array {list(indices.shape)}"
        )
    if indices.dtype == np.bool_:
        if indices.shape != (num_samples,):
            raise ValueError(
                f"a mask has a boolean for each of the {num_samples} samples, got {indices.shape}"
            )
        indices = np.flatnonzero(indices)
    if indices.size and not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices must be whole numbers, got {indices.dtype}")
    subset = np.unique(indices.astype(np.int64))
    if len(subset) != len(indices):
        raise ValueError(f"indices holds {len(indices) - len(subset)} samples more than once")
    if len(subset) and not 0 <= subset[0] <= subset[-1] < num_samples:
        raise ValueError(f"indices must lie in [0, {num_samples}), got {subset[0]} to {subset[-1]}")
    return subset
