"""fastclr's own loader as a case of the harness."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import BetonReader, ViewSpec


@dataclass
class OurLoader:
    """TwoViewLoader, or for crops only the engine beneath it, which gives uint8."""

    name: str
    file: Path
    engine: str
    size: int
    augment: bool
    batch_size: int
    num_threads: int
    lacks: str = ""

    def open(self) -> Any:
        from pipelines import TwoViewLoader
        from pipelines.engines import ENGINES
        from pipelines.planner import Sampler

        spec = ViewSpec.simclr(self.size)
        if self.augment:
            return TwoViewLoader(
                self.file, self.batch_size, spec=spec, engine=self.engine, num_threads=self.num_threads
            )
        reader = BetonReader(self.file)
        sampler = Sampler(reader.heights, reader.widths, spec, self.batch_size)
        options = {"augment": False} if self.engine in ("native", "resident") else {}
        return ENGINES[self.engine](reader, sampler, num_threads=self.num_threads, **options)

    def epoch(self, loader: Any) -> Generator[int]:
        if self.augment:
            for batch in loader:
                yield len(batch)
        else:
            for plan, _ in loader.run(loader.sampler.plans(0)):
                yield len(plan.indices)
