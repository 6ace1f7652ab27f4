"""FFCV's loader reads one file."""

from pipelines.beton import BetonReader


def reject_sets(reader: BetonReader) -> None:
    """Raise ValueError for a set of several files."""
    if len(reader.files) > 1:
        raise ValueError(
            f"{reader.path} is a set of {len(reader.files)} files, and FFCV's loader reads one: use engine native, or "
            "convert the images without --shards"
        )
