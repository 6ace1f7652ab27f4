"""The run folder: what lies in it, whether a run may use it, and the note of what made the run.

config.toml           the resolved config, a recipe of its own; command, versions and commit in its header
metrics.jsonl         one record per log interval; TensorBoard's events beside it
last.pt               the last checkpoint
encoder.safetensors   the encoder of that checkpoint
"""

import fcntl
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastclr import __version__
from fastclr.config import Config
from fastclr.recipes import CONFIG, to_toml
from fastclr.train.checkpoint import ENCODER, atomic_write, load_checkpoint

CHECKPOINT, METRICS = "last.pt", "metrics.jsonl"
FILES = (CHECKPOINT, ENCODER, CONFIG, METRICS)
PACKAGES = ("torch", "torchvision", "numpy", "numba", "simplejpeg", "safetensors")


def saved_run(folder: Path, resume: bool, restarted_job: str | None = None) -> dict[str, Any] | None:
    """The checkpoint that a run in this folder continues, or None for a run that starts anew.

    Looks only; writes nothing.

    Args:
        folder: the run folder.
        resume: the user wants to continue it.
        restarted_job: torchrun's name of the job, if it has started it again: then a checkpoint that the same job
            wrote is continued, unasked.

    Raises:
        OSError: the folder holds a run and `resume` is not set; or it is, and there is none.
        ValueError: the checkpoint is cut or damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; --out needs a folder")
    if resume:
        if not (folder / CHECKPOINT).exists():
            raise FileNotFoundError(
                f"{folder} holds no {CHECKPOINT} to resume; leave out --resume to start a run"
            )
        return load_checkpoint(folder / CHECKPOINT)
    if restarted_job is not None and (folder / CHECKPOINT).exists():
        saved = load_checkpoint(folder / CHECKPOINT)
        if saved.get("job") == restarted_job:
            return saved
    if any((folder / name).exists() for name in FILES) and not _never_stepped(folder):
        raise FileExistsError(
            f"{folder} holds a run; continue it with --resume, choose another --out, or delete it"
        )
    return None


def _never_stepped(folder: Path) -> bool:
    """Whether the run here ended before it had anything to lose: no record, and the checkpoint of step 0."""
    metrics, checkpoint = folder / METRICS, folder / CHECKPOINT
    if not (checkpoint.exists() and metrics.exists()) or metrics.stat().st_size:
        return False
    try:
        with open(metrics, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a run that is alive holds the lock
        return load_checkpoint(checkpoint)["step"] == 0
    except (OSError, ValueError):  # alive, or damaged: for the user to look at
        return False


@contextmanager
def new_run(folder: Path) -> Iterator[None]:
    """Make the folder; if the `with` block that writes its first files fails, none of them stays."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
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
        "fastclr": " ".join([__version__, *source_commit()]),
        **{name: version(name) for name in PACKAGES},
    }
    header = "".join(f"# {name}: {value}\n" for name, value in made_by.items())
    with atomic_write(folder / CONFIG) as out:
        out.write(f"{header}\n{to_toml(config)}".encode())


def source_commit() -> list[str]:
    """["commit …"] and perhaps ["with changes"], if the package runs from a git checkout; else nothing."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # a package installed below somebody else's checkout is not tracked by it
        git("ls-files", "--error-unmatch", here.name)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, no commit yet
        return []
    return [f"commit {commit}", *(["with changes"] if changed else [])]
