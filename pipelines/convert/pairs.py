"""Labels of WebDataset samples: the files `KEY.cls`, `KEY.json` or `KEY.txt` beside an image `KEY.jpg`."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipelines.beton.layout import MAX_CLASSES
from pipelines.convert.class_folders import clean
from pipelines.system.terminal import printable

SUFFIXES = (".cls", ".json", ".txt")
MAX_BYTES = 1 << 20
"""Bytes of the largest file that is read for a label."""
JSON_KEY = "label"
"""Key of a `.json` file that holds the label, where none is named."""

Key = tuple[int, str]
"""Number of the tar, and the sample's key."""


class PairLabels:
    """Collects what the files beside the images say, and picks the field that holds the labels.

    Args:
        field: "cls", "txt", "json" or "json.KEY"; None: `.cls` files if there are any, else `.json` files with a
            key "label", else `.txt` files if those of all images hold numbers.

    Raises:
        ValueError: another field.
    """

    def __init__(self, field: str | None = None) -> None:
        name, _, key = (field or "").partition(".")
        if field is not None and (f".{name}" not in SUFFIXES or (key and name != "json")):
            raise ValueError(
                f"label column {printable(field)!r}: of WebDataset tars it is cls, txt, json or json.KEY, where KEY "
                "is a key of the .json files"
            )
        self._chosen, self._json_key = f".{name}" if field else "", key or JSON_KEY
        self._found: dict[str, dict[Key, int | str | None]] = {suffix: {} for suffix in SUFFIXES}

    def take(self, key: Key, suffix: str, size: int, read: Callable[[], bytes], where: str) -> None:
        """Note the label that a file holds.

        Args:
            key: the sample.
            suffix: one of `SUFFIXES`.
            size: bytes of the file.
            read: returns them.
            where: the tar and the member, for errors.

        Raises:
            ValueError: a `.cls` file, or a file of the field that the user has named, holds no label.
        """
        if self._chosen and suffix != self._chosen:
            self._found[suffix][key] = None
            return
        value: int | str | None = None
        data = read() if 0 <= size <= MAX_BYTES else b""
        if suffix == ".json":
            value = self._from_json(data, where)
        else:
            text = data[:1000].strip()
            if text.isdigit() and len(text) < 20:
                value = int(text)
            elif self._chosen == ".txt" and text:
                value = data.decode("utf-8", "backslashreplace").strip()
            if value is None and (suffix == ".cls" or self._chosen):
                raise _no_number(where, text[:32])
        if isinstance(value, int) and not 0 <= value < MAX_CLASSES:
            if suffix == ".cls" or self._chosen:
                raise _no_number(where, str(value).encode())
            value = None
        self._found[suffix][key] = value

    def _from_json(self, data: bytes, where: str) -> int | str | None:
        try:
            content: Any = json.loads(data)
        # nesting of some thousand brackets is beyond the parser
        except (ValueError, RecursionError) as error:
            if not self._chosen:
                return None
            raise ValueError(
                f"{where} is no valid JSON ({' '.join(str(error).split())}); correct it"
            ) from None
        value = content.get(self._json_key) if isinstance(content, dict) else None
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return value
        if self._chosen:
            keys = printable(", ".join(content), 200) if isinstance(content, dict) else "none"
            raise ValueError(
                f"{where} has no number or name as its key {printable(self._json_key)!r}; its keys: {keys} "
                "(--columns label=json.KEY)"
            )
        return None

    def choose(self, keys: Iterable[Key]) -> str:
        """Return the suffix of the files that hold labels; "" where there are none.

        Args:
            keys: the samples that have an image.
        """
        if self._chosen:
            return self._chosen
        if self._found[".cls"]:
            return ".cls"
        for suffix in (".json", ".txt"):
            values = self._found[suffix]
            if any(value is not None for value in values.values()):
                beside = [values.get(key) for key in keys if key in values]
                if beside and None not in beside:
                    return suffix
        return ""

    def ignored(self, chosen: str) -> Counter[str]:
        """Return how many files of each suffix are not read for labels."""
        return Counter(
            {suffix: len(keys) for suffix, keys in self._found.items() if keys and suffix != chosen}
        )

    def labels(
        self, chosen: str, keys: Iterable[Key], where: Callable[[int], str]
    ) -> tuple[list[str] | None, np.ndarray]:
        """Return class names, where labels are names, and int64 [N], the label of each sample.

        Args:
            chosen: suffix of the files that hold them.
            keys: the samples.
            where: returns the tar and the name of a sample's image, for errors.

        Raises:
            ValueError: an image has no such file beside it, or some labels are numbers and some names.
        """
        values = self._found[chosen]
        found = [values.get(key) for key in keys]
        if None in found:
            raise ValueError(
                f"{where(found.index(None))} has no {chosen} file beside it; add it, or leave the image out"
            )
        names = {value for value in found if isinstance(value, str)}
        if not names:
            return None, np.array(found, np.int64)
        if any(isinstance(value, int) for value in found):
            number = next(k for k, value in enumerate(found) if isinstance(value, int))
            raise ValueError(
                f"{where(number)} has a number as its label and others have names; labels must be of one kind"
            )
        ordered = sorted(names)
        position: dict[int | str | None, int] = {name: k for k, name in enumerate(ordered)}
        return ordered, np.array([position[value] for value in found], np.int64)


def sample_key(name: str) -> str:
    """Return the key that the files of a WebDataset sample share: the path up to the first dot of the file's name."""
    folder, _, file = clean(name).rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _no_number(where: str, content: bytes) -> ValueError:
    return ValueError(
        f"{where} holds {printable(content)}, no class number (0 to {MAX_CLASSES - 1:,}); correct it, or pack the "
        "images in a folder per class"
    )
