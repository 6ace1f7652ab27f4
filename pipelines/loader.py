"""ViewLoader: from a .beton file to batches of augmented views.

file ─▶ BatchPlanner (order, draws) ─plans─▶ engine (decode, crop, flip) ─uint8 crops─▶ augmentation ─▶ Batch
"""

import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines import loader_arguments as check
from pipelines import loader_state
from pipelines.beton import BetonReader, Files
from pipelines.contracts import Batch
from pipelines.engines import EngineName
from pipelines.planner import BatchPlanner, Order
from pipelines.prefetch import DevicePrefetcher
from pipelines.system.cpus import cores
from pipelines.views import ViewSpec


class ViewLoader:
    """Batches of augmented views of the images of a `.beton` file, or of several as one data set.

    Every number that shapes a batch (order, crop boxes, color factors) is a pure function of seed, epoch and
    sample: the same for any engine, number of threads, world size, and after a resume.

    >>> from pipelines import ViewLoader                                             # doctest: +SKIP
    >>> with ViewLoader("train.beton", batch_size=256, size=224) as loader:          # doctest: +SKIP
    ...     for views, labels in loader:                                             # doctest: +SKIP
    ...         loss = step(views[0], views[1])                                      # doctest: +SKIP

    Args:
        file: a `.beton` file; or several as one data set: a list, a pattern such as "train-*.beton", a folder of
            shards, or the index of a set; or an open BetonReader (which then stays open when the loader closes).
        batch_size: images per batch on this rank; each gives all its views.
        views: what the views look like and how many there are: a ViewSpec, or several of them (multi-crop, or views
            with different probabilities).  Consecutive specs of one size make one group, i.e. one tensor.  Or a
            function that maps an epoch's number to its views (progressive resolution); it must be a pure function.
        size: height and width of a view in pixels, with SimCLR's augmentation (`ViewSpec.simclr`: at most 32
            pixels without blur and with half the color jitter, as for CIFAR-10); or give `views`.
        spec: another name of `views`.
        engine: the engine that decodes: a key of `pipelines.engines.ENGINES`.
        augment: False yields the uint8 crops [V, B, H, W, 3], for your own augmentation.
        seed: 64-bit seed of order and views.
        rank, world_size: rank r of W holds rows [r·b, (r+1)·b) of each global batch; None means one rank.
        num_threads: worker threads; None takes the processors that this process may run on.
        device: where the views arrive: "cpu" (float32), "cuda" or "cuda:N" (half precision).
        order: "random"; "sequential"; or "blocks", for files larger than memory.
        drop_last: leave out the incomplete last batch; otherwise split it contiguously over the ranks.
        image_field, label_field: names of the fields of `file` to read; None: those named "image" and "label", or else
            the first of their kinds.
        indices: use these samples only: their numbers, or a mask with a boolean per sample; None means all.
        dtype: of the views; None means float32 on the CPU, and on a GPU bfloat16 or, where its hardware lacks
            that, float16.
        engine_options: further keyword arguments of the engine's constructor.

    Raises:
        ValueError: a bad file or argument; the message says which.
        TypeError: an option that the engine does not have.
        FileNotFoundError: no such file.
        EngineUnavailable: the engine's library or hardware is missing here.

    Warns:
        RuntimeWarning: `world_size` is left out although torchrun started several processes; or another loader of
            this process, on the same file and with the same seed, has other views, whose draws coincide with these.
    """

    def __init__(
        self,
        file: Files | BetonReader,
        batch_size: int,
        *,
        views: ViewSpec | Sequence[ViewSpec] | Callable[[int], ViewSpec | Sequence[ViewSpec]] | None = None,
        size: int | None = None,
        spec: ViewSpec | Sequence[ViewSpec] | None = None,
        engine: EngineName = "native",
        augment: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int | None = None,
        num_threads: int | None = None,
        device: str | torch.device = "cpu",
        order: Order = "random",
        drop_last: bool = True,
        indices: Sequence[int] | np.ndarray | None = None,
        dtype: torch.dtype | None = None,
        engine_options: dict[str, Any] | None = None,
        image_field: str | None = None,
        label_field: str | None = None,
    ) -> None:
        self._views_of: Callable[[int], ViewSpec | Sequence[ViewSpec]] | None = None
        if callable(views):
            self._views_of, views = views, views(0)
        specs = check.view_specs(views, spec, size)
        make_engine = check.engine(engine)
        options = check.engine_options(engine_options, augment)
        num_threads = cores() if num_threads is None else check.whole("num_threads", num_threads)
        check.floating_point(dtype, augment)
        self.device = check.device(device)
        self._owns_reader = not isinstance(file, BetonReader)
        self.reader = check.reader(file, image_field, label_field)
        try:
            self.planner = BatchPlanner(
                heights=self.reader.heights,
                widths=self.reader.widths,
                specs=specs,
                batch_size=check.whole("batch_size", batch_size),
                seed=check.whole("seed", seed, 0),
                order=order,
                rank=check.whole("rank", rank, 0),
                world_size=check.world_size(world_size),
                drop_last=drop_last,
                subset=check.subset(indices, len(self.reader)),
            )
            check.one_batch(self.planner, self.reader)
            self._prefetcher = DevicePrefetcher(self.device, dtype, num_threads, augment)
            self._engine = make_engine(
                self.reader, self.planner, num_threads=num_threads, device=self.device, **options
            )
        except BaseException:
            if self._owns_reader:
                self.reader.close()
            raise
        self._closed = False
        # generators of the engine and the prefetcher
        self._running: weakref.WeakSet[Generator] = weakref.WeakSet()
        # where the next iteration starts
        self._epoch, self._consumed = 0, 0
        # epoch and samples (over all ranks) after the batch last yielded
        self._yielded = (0, 0)
        loader_state.warn_of_coinciding_draws(self)

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        """The distributions of the views; where they depend on the epoch, those of the epoch begun or set last."""
        return self.planner.specs

    def views_of(self, epoch: int) -> tuple[ViewSpec, ...]:
        """Return the distributions of the views of an epoch."""
        if self._views_of is None:
            return self.planner.specs
        return check.view_specs(self._views_of(epoch), None, None)

    @property
    def spec(self) -> ViewSpec:
        """The distribution of the first views, i.e. of all where there is one."""
        return self.planner.specs[0]

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return self.planner.num_batches()

    def num_steps(self, epochs: float) -> int:
        """Return the number of batches in that many epochs, for example as the length of a learning rate schedule.

        >>> total, warmup = loader.num_steps(100), loader.num_steps(10)                 # doctest: +SKIP
        >>> lr = warmup_cosine(step, total, warmup, peak)                               # doctest: +SKIP
        """
        return round(epochs * len(self))

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the next epoch, which begins when the first batch is taken."""
        self._check_open()
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        self._check_open()
        epoch, consumed = self._epoch, self._consumed
        self._use_views(self.views_of(epoch))
        # a later `set_epoch` does not change the views of this iterator
        planner = self.planner
        self._epoch, self._consumed = epoch + 1, 0
        global_batch = planner.batch_size * planner.world_size
        pixels = self._engine.run(planner.plans(epoch, consumed), planner)
        batches = self._prefetcher.run(pixels, planner.groups, self.reader.labels)
        self._running |= {batches, pixels}
        try:
            for batch in batches:
                consumed = min(consumed + global_batch, planner.num_samples)
                over = consumed == planner.num_samples or (
                    planner.drop_last and consumed + global_batch > planner.num_samples
                )
                self._yielded = (epoch + 1, 0) if over else (epoch, consumed)
                yield batch
                self._check_open()
            # meanwhile another thread may have closed the generators
            self._check_open()
            # also on a rank that got no rows of an incomplete last batch
            self._yielded = (epoch + 1, 0)
        finally:
            batches.close()
            pixels.close()

    def _use_views(self, specs: tuple[ViewSpec, ...]) -> None:
        if specs != self.planner.specs:
            self.planner = replace(self.planner, specs=specs)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the loader was closed")

    def set_epoch(
        self,
        epoch: int,
        views: ViewSpec | Sequence[ViewSpec] | None = None,
        *,
        spec: ViewSpec | Sequence[ViewSpec] | None = None,
    ) -> None:
        """Set the epoch of the next iteration and, with `views`, the views from then on (progressive resolution).

        Args:
            epoch: the epoch's number, 0 ≤ epoch < 2³².
            views: a ViewSpec or several, in place of those given before (also of a function); None for no change.
            spec: another name of `views`.

        Raises:
            ValueError: an epoch that has no numbers to draw, or wrong views.
        """
        epoch = check.epoch(epoch)
        if views is not None or spec is not None:
            self._use_views(check.view_specs(views, spec, None))
            self._views_of = None
        self._use_views(self.views_of(epoch))
        self._epoch, self._consumed = self._yielded = (epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the batch that was yielded last; batches prefetched beyond it do not count."""
        epoch, consumed = self._yielded
        return loader_state.sealed(
            {"epoch": epoch, "consumed": consumed, **loader_state.identity(self, epoch)}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state at the next iteration, possibly with another world size or batch size.

        Raises:
            ValueError: `state` is not the state of a loader, is corrupt, or is one of another file, seed, order, set of
                views or subset; the message says which.
        """
        self._epoch, self._consumed = self._yielded = loader_state.position(self, state)
        self._use_views(self.views_of(self._epoch))

    def close(self) -> None:
        """Release threads and memory, and the file if the loader opened it; its iterators then raise RuntimeError."""
        self._closed = True
        for generator in list(self._running):
            # ValueError: another thread is executing the generator
            with suppress(ValueError):
                generator.close()
        self._engine.close()
        if self._owns_reader:
            self.reader.close()

    def __enter__(self) -> "ViewLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


TwoViewLoader = ViewLoader
"""The name of ViewLoader in version 0.1, kept as an alias."""
