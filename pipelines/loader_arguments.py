"""Checks of a loader's arguments; each error is one line that names the argument."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.beton import BetonReader, Files
from pipelines.contracts import Engine
from pipelines.engines import ENGINES
from pipelines.planner import BatchPlanner
from pipelines.views import ViewSpec, as_specs


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, but not a boolean."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def whole(name: str, value: Any, minimum: int = 1) -> int:
    """Check that an argument is an integer, and return it."""
    if not is_whole(value) or value < minimum:
        raise ValueError(f"{name} must be a whole number, at least {minimum}; got {value!r}")
    return int(value)


def reader(
    file: Files | BetonReader, image_field: str | None = None, label_field: str | None = None
) -> BetonReader:
    """Return the reader of a file or a set, which may be one already."""
    if not isinstance(file, BetonReader):
        return BetonReader(file, image_field, label_field)
    if image_field is not None or label_field is not None:
        raise ValueError(
            "image_field and label_field choose what a reader reads, and file is a reader already: give them to it"
        )
    return file


def epoch(value: Any) -> int:
    """Check the number of an epoch, and return it."""
    if not is_whole(value) or not 0 <= value < 1 << 32:
        raise ValueError(f"epoch must be in [0, 2**32) and whole, got {value!r}")
    return int(value)


def view_specs(
    views: ViewSpec | Sequence[ViewSpec] | None,
    spec: ViewSpec | Sequence[ViewSpec] | None,
    size: int | None,
) -> tuple[ViewSpec, ...]:
    """Return the views given by exactly one of `views`, `spec` and `size`."""
    given = [name for name, value in (("views", views), ("spec", spec), ("size", size)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"give one of views, size and spec, got {' and '.join(given)}")
    if size is not None:
        return (ViewSpec.simclr(whole("size", size)),)
    if views is None:
        views = spec
    return as_specs(ViewSpec.simclr(224) if views is None else views)


def engine(name: Any) -> Callable[..., Engine]:
    """Return the constructor of an engine, by its name."""
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    return ENGINES[name]


def engine_options(options: Mapping[str, Any] | None, augment: bool) -> dict[str, Any]:
    """Return the keyword arguments of an engine's constructor."""
    if not isinstance(augment, bool):
        raise ValueError(f"augment must be True or False, got {augment!r}")
    given = dict(options or {})
    if "prefetch" in given:
        whole("prefetch", given["prefetch"])
    if not augment:
        if given.get("augment"):
            raise ValueError("augment=False yields crops, but engine_options asks the engine to augment")
        given["augment"] = False
    return given


def floating_point(dtype: Any, augment: bool) -> None:
    """Check the dtype of the views."""
    if dtype is None:
        return
    if not augment:
        raise ValueError(f"dtype is that of views, got {dtype!r}; with augment=False the crops are uint8")
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be floating point, got {dtype!r}: views are normalised numbers")


def device(name: str | torch.device) -> torch.device:
    """Return a device by its name."""
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}") from None


def world_size(value: Any) -> int:
    """Return the number of ranks: 1 if it is left out, with a warning if torchrun started several."""
    if value is not None:
        return whole("world_size", value)
    launched = os.environ.get("WORLD_SIZE", "")
    if launched.isdecimal() and int(launched) > 1:
        warnings.warn(
            f"world_size is left out, but WORLD_SIZE={launched} in the environment: every process will get the same "
            "batches; pass rank= and world_size= (or world_size=1 if that is meant)",
            RuntimeWarning,
            stacklevel=3,
        )
    return 1


def subset(indices: Sequence[int] | np.ndarray | None, num_samples: int) -> np.ndarray | None:
    """Check `indices`, and return the samples to use, sorted."""
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
                f"indices as a mask must have a boolean for each of the {num_samples} samples, got {indices.shape}"
            )
        indices = np.flatnonzero(indices)
    if indices.size and not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices must be whole numbers, got {indices.dtype}")
    chosen = np.unique(indices.astype(np.int64))
    if len(chosen) != len(indices):
        raise ValueError(f"indices holds {len(indices) - len(chosen)} samples more than once")
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < num_samples:
        raise ValueError(f"indices must lie in [0, {num_samples}), got {chosen[0]} to {chosen[-1]}")
    return chosen


def one_batch(planner: BatchPlanner, reader: BetonReader) -> None:
    """Check that an epoch has at least one batch."""
    global_batch = planner.batch_size * planner.world_size
    if not planner.num_samples or (planner.drop_last and global_batch > planner.num_samples):
        raise ValueError(
            f"{reader.path}: {planner.num_samples} samples do not fill one batch of {global_batch}; "
            "lower batch_size (or pass drop_last=False)"
        )
