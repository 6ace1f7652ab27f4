"""The run folder: what lies in it, which run may use it, and the note of what made the run.

A folder that holds a run is continued; whether it is the same run is decided by `fastclr.train.loop`.

config.toml           the resolved config, a recipe of its own; command, versions and commit in its header
metrics.jsonl         one record per log interval; TensorBoard's events beside it
last.pt               the last checkpoint
encoder.safetensors   the encoder of that checkpoint
"""

import fcntl
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastclr import __version__
from fastclr.config import Config
from fastclr.recipes import CONFIG, to_toml
from fastclr.train.checkpoint import ENCODER, atomic_write, load_checkpoint
from pipelines.system.versions import git_commit, package_versions

CHECKPOINT, METRICS = "last.pt", "metrics.jsonl"
FILES = (CHECKPOINT, ENCODER, CONFIG, METRICS)
LOCK_TIMEOUT_S = 5.0
"""How long a run waits for another in its folder to end: torchrun may still be ending the one before."""
PACKAGES = ("torch", "torchvision", "numpy", "numba", "simplejpeg", "safetensors")


class RunLock:
    """The mark of a run that is alive: a lock on its metrics.jsonl, held until the block or the process ends."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def take(self, folder: Path) -> None:
        """Take the lock, and remove what a run that was killed while it wrote has left behind.

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
            except OSError:  # some network's file system has no locks
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
    """Return the checkpoint that a run in this folder continues, or None for a run that starts anew.

    Args:
        folder: the run folder.
        lock: taken, where the folder holds a run that may go on or never took a step.
        fresh: refuse to continue a run.
        resume: refuse to start one.

    Raises:
        OSError: the folder holds a run and `fresh` is set, or none and `resume` is; what it holds can't be continued;
            or the run is alive.
        ValueError: the checkpoint is damaged.
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


def never_stepped(folder: Path) -> bool:
    """Whether the run here has nothing to lose: it has made no record, and no checkpoint but that of step 0."""
    metrics, checkpoint = folder / METRICS, folder / CHECKPOINT
    if not metrics.exists() or metrics.stat().st_size:
        return False
    try:
        return not checkpoint.exists() or load_checkpoint(checkpoint)["step"] == 0
    # damaged: for the user to look at
    except ValueError:
        return False


@contextmanager
def new_run(folder: Path, lock: RunLock) -> Iterator[None]:
    """Make the folder and take its lock; if the `with` block that writes its first files fails, none of them stays.

    Raises:
        FileExistsError: another run has begun there meanwhile.
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
    """Write `config.toml`: settings that `fastclr train` takes as a recipe, and what made the run, as comments."""
    made_by = {
        "command": shlex.join(["fastclr", *sys.argv[1:]]),
        "file": str(file),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "fastclr": " ".join([__version__, *_source_commit()]),
        **package_versions(*PACKAGES),
    }
    header = "".join(f"# {name}: {value}\n" for name, value in made_by.items())
    with atomic_write(folder / CONFIG) as out:
        out.write(f"{header}\n{to_toml(config)}".encode())


def _source_commit() -> list[str]:
    """Return ["commit …"] and perhaps ["with changes"], if the package runs from a git checkout; else nothing."""
    commit = git_commit(Path(__file__))
    if commit is None:
        return []
    return [f"commit {commit.hash}", *(["with changes"] if commit.changed else [])]
