"""Meter: collects loss and speed between two log lines, without synchronising with the device in every step."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from fastclr.train.distributed import Ranks, mean_over_ranks

Item = TypeVar("Item")


class NotFinite(ValueError):
    """A value became NaN or infinite; the message names the step (the first step of a run is step 1)."""

    def __init__(self, step: int, what: str, value: object) -> None:
        super().__init__(f"step {step}: {what} became {value}")
        self.step = step


class Meter:
    """Collects the numbers of the steps between two log lines.

    Losses are averaged and images summed over the ranks.  Losses stay on the device until `flush`: one transfer per log
    line, no synchronisation per step.

        for batch in meter.timed(loader):
            …
            meter.add(loss, len(batch))
            if step % log_every == 0:
                numbers = meter.flush(step)      # on every rank

    Args:
        ranks: the ranks of the run; None: a single process.
        clock: returns seconds.
    """

    def __init__(self, ranks: Ranks | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._ranks = ranks or Ranks()
        self._clock = clock
        self._losses: list[torch.Tensor] = []
        self._images, self._wait_s, self._paused_s = 0, 0.0, 0.0
        self._start = self._last = (0, 0.0, self._now())

    def timed(self, batches: Iterable[Item]) -> Generator[Item]:
        """Yield the batches, and measure the time that this thread is blocked in `next`.

        On a GPU this is an upper bound of the device's idle time, since the device may still have queued work.
        """
        iterator = iter(batches)
        try:
            while True:
                start = self._clock()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._wait_s += self._clock() - start
                yield batch
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the duration of the block, an evaluation, out of the measurement."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - start

    def _now(self) -> float:
        return self._clock() - self._paused_s

    def add(self, loss: torch.Tensor, images: int) -> None:
        """Count a step: its loss (0-dim, any device) and its source images on this rank."""
        self._losses.append(loss.detach())
        self._images += images * self._ranks.world_size

    def flush(self, step: int) -> dict[str, float]:
        """Return the mean loss of the steps since the last `flush`, and the speed; then start over.

        Args:
            step: number of the last step that was added.

        Returns:
            loss (mean over the steps), images_per_s (source images; one image is two views),
            data_wait (share of the wall time spent in `next`); empty if no step was added.

        Raises:
            NotFinite: naming the first step whose loss is not a number.
        """
        if not self._losses:
            return {}
        mean_losses = mean_over_ranks(torch.stack(self._losses).float(), self._ranks)
        losses = mean_losses.tolist()  # waits for the device, before the clock is read
        self._losses.clear()
        for number, loss in enumerate(losses, step - len(losses) + 1):
            if not math.isfinite(loss):
                raise NotFinite(number, "the loss", loss)
        speed = self._speed_since(self._last)
        self._last = (self._images, self._wait_s, self._now())
        return {"loss": math.fsum(losses) / len(losses), **speed}

    def totals(self) -> dict[str, float]:
        """Return images_per_s and data_wait since the meter was made."""
        return self._speed_since(self._start)

    def _speed_since(self, past: tuple[int, float, float]) -> dict[str, float]:
        images, wait_s, since = past
        elapsed_s = max(self._now() - since, 1e-9)
        return {
            "images_per_s": (self._images - images) / elapsed_s,
            "data_wait": (self._wait_s - wait_s) / elapsed_s,
        }
