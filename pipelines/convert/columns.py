"""The option --columns: which columns of a table hold the image and the label."""

from collections.abc import Mapping

from pipelines.system.terminal import printable

COLUMNS = ("image", "label")


def parse_columns(text: str | None) -> dict[str, str]:
    """Return the columns that the user has named.

    Raises:
        ValueError: the text is not of the form `image=NAME,label=NAME`.

    >>> parse_columns("image=img,label=fine_label")
    {'image': 'img', 'label': 'fine_label'}
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        column, equals, name = (piece.strip() for piece in part.partition("="))
        if not (equals and name and column in COLUMNS and column not in columns):
            raise ValueError(
                f"--columns must be image=NAME,label=NAME or one of both, got {printable(text)!r}"
            )
        columns[column] = name
    return columns


def reject_columns(columns: Mapping[str, str], allowed: tuple[str, ...], source: str) -> None:
    """Raise ValueError where a column is named that a source does not have."""
    for column in columns:
        if column not in allowed:
            raise ValueError(
                f"--columns {column}={printable(columns[column])}: {source} has no such column; columns are those of "
                "parquet files and of --labels, and label is one of WebDataset tars"
            )
