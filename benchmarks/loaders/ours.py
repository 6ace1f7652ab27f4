"""fastclr's own loader as a case of the harness."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.beton import Files
    from pipelines.engines import EngineName


@dataclass
class OurLoader:
    """ViewLoader, which gives views or, for crops only, uint8 crops."""

    name: str
    file: "Files"
    engine: "EngineName"
    size: int
    augment: bool
    batch_size: int
    num_threads: int
    center: bool = False
    """One center crop per image, as in an evaluation, instead of two random ones."""
    lacks: str = ""
    fields: tuple[str | None, str | None] = (None, None)
    """Names of the image and the label field."""

    def open(self) -> Any:
        from pipelines import ViewLoader, ViewSpec

        return ViewLoader(
            self.file,
            self.batch_size,
            views=ViewSpec.center(self.size) if self.center else ViewSpec.simclr(self.size),
            engine=self.engine,
            augment=self.augment,
            num_threads=self.num_threads,
            image_field=self.fields[0],
            label_field=self.fields[1],
        )

    def epoch(self, loader: Any) -> Generator[int]:
        for batch in loader:
            yield len(batch)
