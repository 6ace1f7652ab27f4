"""State of a loader: its form when saved, checks of a saved state, and a warning about coinciding draws."""

import json
import warnings
import weakref
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import loader_arguments as check
from pipelines.beton import BetonReader
from pipelines.planner import BatchPlanner
from pipelines.views import ViewSpec

if TYPE_CHECKING:
    from pipelines.loader import ViewLoader

_alive: "weakref.WeakSet[ViewLoader]" = weakref.WeakSet()
"""All open loaders of this process."""


def identity(loader: "ViewLoader", epoch: int) -> dict[str, Any]:
    """Return the settings that must be equal for a saved position in an epoch to mean the same batches."""
    planner = loader.planner
    return {
        "seed": planner.seed,
        "order": planner.order,
        "views": [asdict(spec) for spec in loader.views_of(epoch)],
        "fingerprint": loader.reader.fingerprint,
        "indices": None if planner.subset is None else sha256(planner.subset.tobytes()).hexdigest()[:16],
    }


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with a checksum of its content, for states that users keep in files of their own."""
    return {**state, "checksum": _checksum(state)}


def _checksum(state: dict[str, Any]) -> str:
    # JSON, so that a state whose tuples have become lists has the same one
    content = {name: value for name, value in state.items() if name != "checksum"}
    return sha256(json.dumps(content, sort_keys=True, default=int).encode()).hexdigest()[:16]


def position(loader: "ViewLoader", state: Any) -> tuple[int, int]:
    """Check a saved state, and return its epoch and its number of consumed samples.

    Raises:
        ValueError: it is not the state of a loader, is corrupt, or belongs to other batches; the message says why.
    """
    path, saved = loader.reader.path, state
    if isinstance(state, dict) and "spec" in state and "views" not in state:
        # version 0.1
        state = {**state, "views": [state["spec"]]}
    if not isinstance(state, dict) or not state.keys() >= {"epoch", "consumed", *identity(loader, 0)}:
        raise ValueError(f"{path}: cannot resume, this is not what state_dict() returned")
    epoch, consumed, num_samples = check.epoch(state["epoch"]), state["consumed"], loader.planner.num_samples
    ours = identity(loader, epoch)
    if not check.is_whole(consumed) or not 0 <= consumed <= num_samples:
        raise ValueError(f"{path}: cannot resume after {consumed!r} samples of {num_samples}")
    agrees = {
        "views": same_views(loader.views_of(epoch), state["views"]),
        "fingerprint": same_data(loader.reader, state["fingerprint"]),
    }
    for name, value in ours.items():
        # a state that went through JSON has lists instead of tuples
        if not agrees.get(name, json.dumps(state[name]) == json.dumps(value)):
            raise ValueError(
                f"{path}: cannot resume, the saved state has another {name}: {state[name]!r}, here {value!r}"
            )
    # version 0.1 wrote no checksum
    if "checksum" in saved and saved["checksum"] != _checksum(saved):
        raise ValueError(f"{path}: cannot resume, the saved state is corrupt: its checksum differs")
    return epoch, int(consumed)


def same_views(specs: tuple[ViewSpec, ...], saved: Any) -> bool:
    """Whether saved specs, possibly of an earlier version, equal `specs`."""
    return [ViewSpec.from_saved(spec) for spec in saved] == list(specs)


def same_data(reader: BetonReader, saved: Any) -> bool:
    """Whether a saved fingerprint is that of the reader's file."""
    return reader.matches_fingerprint(saved)


def warn_of_coinciding_draws(loader: "ViewLoader") -> None:
    """Warn if another loader draws the same numbers for other views: flips, jitter and blur would coincide."""
    for other in list(_alive):
        if other is not loader and not other._closed and _coincide(loader, other):
            warnings.warn(
                f"two loaders on {loader.reader.path} have the same seed and different views: the numbers drawn for "
                "view v of an image coincide in both; use one loader with views=(spec_a, spec_b), or another seed",
                RuntimeWarning,
                stacklevel=3,
            )
            break
    _alive.add(loader)


def _coincide(loader: "ViewLoader", other: "ViewLoader") -> bool:
    ours, theirs = loader.planner, other.planner
    if ours.seed != theirs.seed or ours.specs == theirs.specs:
        return False
    if not (_draws(ours) and _draws(theirs) and _same_file(loader.reader, other.reader)):
        return False
    if ours.subset is None or theirs.subset is None:
        return True
    return len(np.intersect1d(ours.subset, theirs.subset)) > 0


def _same_file(ours: BetonReader, theirs: BetonReader) -> bool:
    try:
        return ours is theirs or same_data(ours, theirs.fingerprint)
    # the user has closed that reader
    except ValueError:
        return False


def _draws(planner: BatchPlanner) -> bool:
    """Whether anything about the views is random; nothing is for the views of an evaluation."""
    return any(
        any((spec.center_crop_fraction is None, 0 < spec.flip_p < 1, spec.jitter_p, spec.gray_p, spec.blur_p))
        for spec in planner.specs
    )
