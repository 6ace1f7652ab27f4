"""Meter: what the run did since it was last asked, without making the device wait in between."""

import math
import time
from collections.abc import Generator, Iterable
from typing import TypeVar

import torch

from fastclr.train.collective import mean_over_ranks
from fastclr.train.distributed import Ranks

Item = TypeVar("Item")


class NotFinite(ValueError):
    """Something became NaN or infinite; the message names the step (the first of a run is step 1)."""

    def __init__(self, step: int, what: str, value: object) -> None:
        super().__init__(f"step {step}: {what} became {value}")
        self.step = step


class Meter:
    """Collects the numbers of the steps between two log lines.

    Losses are averaged over the ranks, images are those of all of them.  Losses stay tensors on the device until
    `read`: one transfer per log line, no synchronisation per step.

        for batch in meter.waiting(loader):
            …
            meter.add(loss, len(batch))
            if step % log_every == 0:
                numbers = meter.read(step)      # on every rank

    Args:
        ranks: of the run; None: a single process.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self._losses: list[torch.Tensor] = []
        self._images, self._wait_s = 0, 0.0
        self._start = self._last = (0, 0.0, time.perf_counter())

    def waiting(self, batches: Iterable[Item]) -> Generator[Item]:
        """The same batches; counts the time that this thread is blocked in `next`.

        On a GPU, which runs behind the thread that feeds it, this is an upper bound: the device may still
        have work while the thread waits.
        """
        iterator = iter(batches)
        try:
            while True:
                start = time.perf_counter()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._wait_s += time.perf_counter() - start
                yield batch
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def add(self, loss: torch.Tensor, images: int) -> None:
        """Count a step: its loss (0-dim, any device) and its source images on this rank."""
        self._losses.append(loss.detach())
        self._images += images * self._ranks.world_size

    def read(self, step: int) -> dict[str, float]:
        """Mean loss of the steps since the last `read`, and the speed; then starts anew.

        Args:
            step: steps done so far; the last one that was added.

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
        self._last = (self._images, self._wait_s, time.perf_counter())
        return {"loss": math.fsum(losses) / len(losses), **speed}

    def overall(self) -> dict[str, float]:
        """images_per_s and data_wait since the meter was made."""
        return self._speed_since(self._start)

    def _speed_since(self, past: tuple[int, float, float]) -> dict[str, float]:
        images, wait_s, since = past
        elapsed_s = max(time.perf_counter() - since, 1e-9)
        return {
            "images_per_s": (self._images - images) / elapsed_s,
            "data_wait": (self._wait_s - wait_s) / elapsed_s,
        }
