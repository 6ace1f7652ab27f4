"""ImageNet's development kit: the classes by their numbers, and the labels of the validation images."""

import gzip
import io
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.convert import meta_mat
from pipelines.convert.files import listed
from pipelines.convert.optional import import_optional
from pipelines.convert.tar_headers import TarWalk
from pipelines.system.terminal import printable

ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
STEM = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
MAX_BYTES = 1 << 28
"""Bytes of the largest unpacked kit that is read; ImageNet's has 4 MB."""
TIMEOUT_S = 120.0
"""Seconds that reading `meta.mat` may take; it takes one."""
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Devkit:
    """What a development kit says."""

    path: Path
    wnids: dict[int, str]
    """ILSVRC id, from 1 on → wnid (WordNet's code of a class), of the classes that images have."""
    titles: dict[str, str]
    """wnid → readable name."""
    ground_truth: list[int]
    """ILSVRC id of each validation image, by its number."""

    def labels(self) -> dict[str, str]:
        """Return the wnid of each validation image, by the name of its file without suffix."""
        return {f"ILSVRC2012_val_{k:08}": self.wnids[id] for k, id in enumerate(self.ground_truth, 1)}


def find_devkit(folders: Iterable[Path]) -> Devkit | None:
    """Return the development kit that lies in one of some folders, as an archive or unpacked; None: there is none.

    Raises:
        OSError: it cannot be read.
        ValueError: it is corrupt or the one of another task, or there are two that differ.
    """
    candidates: list[Path] = []
    others: list[Path] = []
    for folder in folders:
        for path in sorted(folder.glob("ILSVRC2012_devkit_t*")):
            (candidates if path.name.startswith(STEM) else others).append(path)
    kits = [read_devkit(path) for path in candidates]
    for kit in kits[1:]:
        if (kit.wnids, kit.ground_truth) != (kits[0].wnids, kits[0].ground_truth):
            raise ValueError(
                f"two development kits that differ: {printable(kits[0].path)} and {printable(kit.path)}; remove the "
                "one that is not ImageNet's"
            )
    if not kits and others:
        raise ValueError(
            f"{listed([path.name for path in others])}: the development kit of another task; the labels are in "
            f"{ARCHIVE}"
        )
    return kits[0] if kits else None


def read_devkit(path: Path) -> Devkit:
    """Return what a development kit says: the archive as downloaded, or its unpacked folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is corrupt, or no development kit.
    """
    files = _from_folder(path) if path.is_dir() else _from_archive(path)
    for name in ("meta.mat", GROUND_TRUTH):
        if name not in files:
            raise ValueError(f"{printable(path)}: no {name} in it; download {ARCHIVE} again")
    wnids, titles = parse_meta(files["meta.mat"], f"{printable(path)}: meta.mat")
    truth = files[GROUND_TRUTH].split()
    known = {str(id).encode() for id in wnids}
    for k, id in enumerate(truth, 1):
        if id not in known:
            raise ValueError(
                f"{printable(path)}: {GROUND_TRUTH}, line {k}: {printable(id, 40)} is the number of no class of "
                f"meta.mat; download {ARCHIVE} again"
            )
    return Devkit(path, wnids, titles, [int(id) for id in truth])


def parse_meta(data: bytes, where: str) -> tuple[dict[int, str], dict[str, str]]:
    """Return ILSVRC id → wnid, and wnid → readable name, of the classes of a `meta.mat` that images have.

    Raises:
        ValueError: it is corrupt, or scipy is missing.
    """
    import_optional("scipy.io", "imagenet", "the development kit's meta.mat")
    try:
        # in a process of its own, which may crash; -P: its folder has files of the names of other modules
        command = [sys.executable, "-P", meta_mat.__file__]
        found = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S)
        if found.returncode < 0:
            raise ValueError("scipy crashes at it")
        if found.returncode:
            raise ValueError(found.stderr.decode("utf-8", "backslashreplace"))
        # inner nodes of WordNet's tree have children, and no images
        leaves = [row for row in json.loads(found.stdout) if row[3] == 0]
    except (ValueError, subprocess.TimeoutExpired) as error:
        reason = printable(" ".join(str(error).split()[-40:]), 200)
        raise ValueError(
            f"{where}: no table of ImageNet's classes ({reason}); download {ARCHIVE} again"
        ) from error
    wnids = {id: wnid for id, wnid, _, _ in leaves}
    titles = {wnid: words for _, wnid, words, _ in leaves}
    if not wnids or len(titles) < len(leaves) or not all(_WNID.fullmatch(wnid) for wnid in titles):
        raise ValueError(f"{where}: its classes have no or the same codes; download {ARCHIVE} again")
    return wnids, titles


def _from_folder(path: Path) -> dict[str, bytes]:
    files = {}
    for name in ("meta.mat", GROUND_TRUTH):
        for place in (path / "data" / name, path / STEM / "data" / name, path / name):
            if place.is_file() and name not in files:
                if place.stat().st_size > MAX_BYTES:
                    raise ValueError(
                        f"{printable(place)}: over {MAX_BYTES >> 20} MB, so it is not ImageNet's"
                    )
                files[name] = place.read_bytes()
    return files


def _from_archive(path: Path) -> dict[str, bytes]:
    try:
        with gzip.open(path) as packed:
            data = packed.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{printable(path)}: corrupt ({error}); download it again") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{printable(path)}: over {MAX_BYTES >> 20} MB unpacked, so it is not {ARCHIVE}")
    files: dict[str, bytes] = {}
    for member in TarWalk(io.BytesIO(data), path):
        if member.kind == "file" and member.size >= 0:
            name = PurePosixPath(member.name).name
            if name in ("meta.mat", GROUND_TRUTH) and name not in files:
                files[name] = data[member.offset : member.offset + member.size]
    return files
