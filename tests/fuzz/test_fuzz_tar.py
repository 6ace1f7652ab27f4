"""Mutated tars, opened and read."""

import io
import tarfile
from collections import Counter
from pathlib import Path

from fuzz.harness import Original, fuzz, main
from support.sources import read_all

from pipelines.convert import open_source

LONG = "long/" * 30
NUMBERS = {"name": (0, 100), "size": (124, 12), "checksum": (148, 8), "type": (156, 1), "prefix": (345, 155)}
"""Fields of a header, by their first byte and length."""


def make_tar(names: list[str], tar_format: int, links: bool = False) -> Original:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for number, name in enumerate(names):
            content = b"7\n" if name.endswith(".cls") else name.encode() * 30
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), {"comment": "x" * number}
            tar.addfile(info, io.BytesIO(content))
        if links:
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, names[0]
            tar.addfile(info)
    data = buffer.getvalue()
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    fields = [(at + start, length) for at in headers for start, length in NUMBERS.values()]
    extensions = [(at + 512, 40) for at in headers if data[at + 156 : at + 157] in (b"x", b"L", b"g")]
    return Original(data, fields + extensions)


def tar_of_tars(inner: list[bytes]) -> Original:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, content in enumerate(inner):
            info = tarfile.TarInfo(f"class-{number}.tar")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    return Original(data, [(at + start, length) for at in headers for start, length in NUMBERS.values()])


def with_checksums(data: bytes) -> bytes:
    """Correct the checksums of the headers, so that mutations of other fields are reached."""
    mended = bytearray(data)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            mended[at + 148 : at + 156] = b" " * 8
            mended[at + 148 : at + 156] = b"%06o\0 " % sum(mended[at : at + 512])
    return bytes(mended)


def read(path: Path) -> None:
    source = open_source([str(path)])
    read_all(source, ValueError)


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    """Half of the cases get correct checksums, which a mutation of a header nearly always breaks."""
    names = ["a/1.jpg", "b/2.jpg", f"b/{LONG}3.jpg", "a/notes.txt", "c/4.jpg"]
    pairs = [f"{k}.{suffix}" for k in range(3) for suffix in ("jpg", "cls")]
    originals = [
        make_tar(names[:2] + names[3:], tarfile.USTAR_FORMAT, links=True),
        make_tar(names, tarfile.GNU_FORMAT, links=True),
        make_tar(names, tarfile.PAX_FORMAT),
        make_tar(pairs, tarfile.PAX_FORMAT),
    ]
    originals.append(Original(originals[0].data + originals[1].data, originals[0].fields))
    originals.append(tar_of_tars([originals[0].data, originals[2].data]))

    def attempt(path: Path) -> None:
        read(path)

    def attempt_mended(path: Path) -> None:
        path.write_bytes(with_checksums(path.read_bytes()))
        read(path)

    file = folder / "fuzz.tar"
    half = count // 2
    return fuzz(originals, attempt, file, half, seed) + fuzz(
        originals, attempt_mended, file, count - half, seed
    )


def test_mutated_tars(tmp_path):
    outcomes = run(tmp_path, 200, seed=0)
    assert outcomes["accepted"] > 10 and outcomes["refused"] > 50


if __name__ == "__main__":
    main("tar", run)
