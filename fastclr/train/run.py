"""The run folder: its files, its lock, which run it continues, and the record of what made the run.

A run that a folder holds is continued if its identity (settings and data) is the same.

config.toml           the resolved config, a recipe of its own; command, versions and commit in its header
metrics.jsonl         one record per log interval; TensorBoard's events beside it
last.pt               the last checkpoint
encoder.safetensors   the encoder of that checkpoint
"""

import fcntl
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastclr import __version__
from fastclr.config import Config, flatten
from fastclr.recipes import CONFIG_FILE, to_toml
from fastclr.renamed import current
from fastclr.train.checkpoint import ENCODER, atomic_write, differences, load_checkpoint
from pipelines import BetonReader
from pipelines.system.versions import git_commit, package_versions

CHECKPOINT, METRICS = "last.pt", "metrics.jsonl"
FILES = (CHECKPOINT, ENCODER, CONFIG_FILE, METRICS)
LOCK_TIMEOUT_S = 5.0
"""How long a run waits for another one in its folder: torchrun may still be ending the previous attempt."""
DATA_FINGERPRINT = "the data's fingerprint"
MAY_CHANGE = {
    *("data.threads", "train.threads", "train.device", "train.compile", "train.graph", "optim.impl"),
    *("train.log_every", "train.checkpoint_minutes", "train.eval_epochs", "train.eval_size"),
}
"""Settings that decide how a run is computed and not what: they may change when it is resumed."""
NUMBER = re.compile(r"views\[\d+\]\.")
"""Begins the name of a setting of one of several specs."""
NUM_SPECS = "the number of [[views]]"
PACKAGES = ("torch", "torchvision", "numpy", "numba", "simplejpeg", "safetensors")


class RunLock:
    """Marks a running run: a lock on its metrics.jsonl, held until the block or the process ends."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def take(self, folder: Path) -> None:
        """Take the lock, and remove the partial files of a run that was killed while it wrote.

        Raises:
            FileExistsError: another run holds it.
        """
        if self._file is not None:
            return
        file, start = open(folder / METRICS, "ab"), time.monotonic()  # noqa: SIM115 closed at the end of the block
        alone = False
        while not alone:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                if time.monotonic() - start > LOCK_TIMEOUT_S:
                    file.close()
                    raise FileExistsError(
                        f"{folder}: another process is training there; stop it first, or choose another --out"
                    ) from None
                time.sleep(0.1)
            except OSError:  # some network file systems have no locks
                break
        self._file = file
        for name in FILES if alone else ():
            for partial in folder.glob(f".{name}.*.partial"):
                partial.unlink(missing_ok=True)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def saved_run(
    folder: Path, lock: RunLock, *, fresh: bool = False, resume: bool = False
) -> dict[str, Any] | None:
    """Return the checkpoint that a run in this folder continues from, or None for a run that starts from scratch.

    Args:
        folder: the run folder.
        lock: taken if the folder holds a run that can be continued, or one that never took a step.
        fresh: refuse to continue a run.
        resume: refuse to start a new one.

    Raises:
        OSError: the folder holds a run and `fresh` is set, or holds none and `resume` is set; its files are no run that
            can be continued; or another process is training there.
        ValueError: the checkpoint is corrupt.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; --out needs a folder")
    held = [name for name in FILES if (folder / name).exists()]
    if resume and CHECKPOINT not in held:
        raise FileNotFoundError(
            f"{folder} holds no {CHECKPOINT} to resume; leave out --resume to start a run"
        )
    if not held:
        return None
    if not never_stepped(folder):
        if fresh:
            raise FileExistsError(
                f"{folder} holds a run, which --fresh does not continue; choose another --out, or delete it"
            )
        if CHECKPOINT not in held:
            raise FileExistsError(
                f"{folder} holds {' and '.join(held)} but no {CHECKPOINT} to continue; choose another --out, or "
                "move them away"
            )
    lock.take(folder)
    return None if fresh or CHECKPOINT not in held else load_checkpoint(folder / CHECKPOINT)


def run_identity(config: Config, reader: BetonReader, world_size: int) -> dict[str, Any]:
    """Return the settings and the data that must be the same for a run to be continued; the config must be resolved."""
    settings = {name: value for name, value in flatten(config).items() if name not in MAY_CHANGE}
    micro_batch = settings.pop("train.micro_batch")
    # batch norm takes its statistics over the micro-batches of all ranks: their total must stay the same
    if micro_batch is not None:
        settings["train.micro_batch times the ranks"] = micro_batch * world_size
    return {**settings, DATA_FINGERPRINT: reader.fingerprint}


def is_same_run(
    folder: Path, saved: Mapping[str, Any] | None, now: Mapping[str, Any], reader: BetonReader
) -> bool:
    """Whether the checkpoint of a folder is continued.  One of another run is not, if that has made no step.

    Args:
        folder: the run folder.
        saved: its checkpoint; None if there is none.
        now: the `run_identity` of the run that starts.
        reader: the training file.

    Raises:
        ValueError: the folder holds another run, which has made steps.
    """
    if saved is None:
        return False
    fingerprint = saved["identity"].get(DATA_FINGERPRINT)
    # version 0.1 saved another form of the fingerprint
    if reader.matches_fingerprint(fingerprint):
        now = {**now, DATA_FINGERPRINT: fingerprint}
    settings = dict(current(name, value) for name, value in saved["identity"].items())
    if (before := _num_specs(settings)) != (after := _num_specs(now)):
        settings = {**_without_views(settings), NUM_SPECS: before}
        now = {**_without_views(now), NUM_SPECS: after}
    defaults = flatten(Config())
    # a spec among several has the defaults of one
    defaults |= {name: defaults.get(NUMBER.sub("views.", name)) for name in now if NUMBER.match(name)}
    changed = differences(settings, now, defaults)
    if changed and never_stepped(folder):
        return False
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}; take {folder} as the recipe to continue "
            "it, or choose another --out"
        )
    return True


def _num_specs(settings: Mapping[str, Any]) -> int:
    return max(1, len({match[0] for name in settings if (match := NUMBER.match(name))}))


def _without_views(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith(("views.", "views["))}


def never_stepped(folder: Path) -> bool:
    """Whether the run in a folder has nothing to lose: no record, and no checkpoint except that of step 0."""
    metrics, checkpoint = folder / METRICS, folder / CHECKPOINT
    if not metrics.exists() or metrics.stat().st_size:
        return False
    try:
        return not checkpoint.exists() or load_checkpoint(checkpoint)["step"] == 0
    # a corrupt checkpoint is left for the user to look at
    except ValueError:
        return False


@contextmanager
def new_run(folder: Path, lock: RunLock) -> Iterator[None]:
    """Make the folder and take its lock.  If the `with` block, which writes the first files, fails, remove them again.

    Raises:
        FileExistsError: meanwhile another run has begun there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock.take(folder)
    try:
        yield
    except BaseException:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise


def write_config(folder: Path, config: Config, file: Path) -> None:
    """Write `config.toml`: the settings, usable as a recipe, and as comments the command, versions and commit."""
    made_by = {
        "command": shlex.join(["fastclr", *sys.argv[1:]]),
        "file": str(file),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "fastclr": " ".join([__version__, *_source_commit()]),
        **package_versions(*PACKAGES),
    }
    header = "".join(f"# {name}: {value}\n" for name, value in made_by.items())
    with atomic_write(folder / CONFIG_FILE) as out:
        out.write(f"{header}\n{to_toml(config)}".encode())


def _source_commit() -> list[str]:
    """Return ["commit …"] and perhaps ["with changes"], if the package runs from a git checkout; else nothing."""
    commit = git_commit(Path(__file__))
    if commit is None:
        return []
    return [f"commit {commit.hash}", *(["with changes"] if commit.changed else [])]
