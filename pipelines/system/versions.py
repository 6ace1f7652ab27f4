"""Versions of packages, git commit and processor, which are recorded with each result."""

import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GIT_TIMEOUT_S = 10


@dataclass(frozen=True)
class Commit:
    """The commit of a checkout."""

    hash: str
    """40 hex digits."""
    changed: bool
    """Whether tracked files differ from the commit."""


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed.

    >>> package_version("no-such-package") is None
    True
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def package_versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: found for name in packages if (found := package_version(name)) is not None}


def git_commit(file: Path) -> Commit | None:
    """Return the commit of the checkout that tracks `file`.

    None means: an installed package (even below a checkout of something else, which does not track it), no git, or no
    commit yet.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_S)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return Commit(commit, bool(changed))


def processor_name() -> str:
    """Return the processor's model name if the system tells it, else its architecture."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def vector_extension() -> str:
    """Return the widest vectors of the processor that the kernels use ("avx512bw" or "avx2"), or "" if unknown."""
    flags = _cpuinfo().get("flags", "").split()
    return next((wide for wide in ("avx512bw", "avx2") if wide in flags), "")


def _cpuinfo() -> dict[str, str]:
    """Return the entries of Linux's /proc/cpuinfo; {} on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    entries = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in entries}
