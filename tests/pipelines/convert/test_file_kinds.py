"""What is said of files that are given as tars and are none: made by the programs that make such files."""

import bz2
import gzip
import io
import lzma
import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.convert import open_source


def sqlite(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("create table images (name)")
    base.close()


def lmdb(path: Path) -> None:
    path.write_bytes(bytes(16) + b"\xde\xc0\xef\xbe" + bytes(4000))


def magic(start: bytes):
    return lambda path: path.write_bytes(start + bytes(3000))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "a.tar.gz",
            lambda path: path.write_bytes(gzip.compress(bytes(9999))),
            "compressed with gzip; gunzip",
        ),
        ("a.bz2", lambda path: path.write_bytes(bz2.compress(bytes(9999))), "compressed with bzip2; bunzip2"),
        ("a.xz", lambda path: path.write_bytes(lzma.compress(bytes(9999))), "compressed with xz; unxz"),
        ("a.zst", magic(b"\x28\xb5\x2f\xfd"), "compressed with zstd; unzstd"),
        ("a.arrow", magic(b"ARROW1\0\0"), "Arrow file"),
        ("a.h5", magic(b"\x89HDF\r\n\x1a\n"), "HDF5 file"),
        ("data.mdb", lmdb, "LMDB data base"),
        ("a.db", sqlite, "SQLite data base"),
        ("a.npz", lambda path: np.savez(path, x=np.zeros(9)), r"NumPy arrays \(.npz\)"),
        ("a.npy", lambda path: np.save(path, np.zeros(9)), r"NumPy array \(.npy\)"),
        ("a.pt", lambda path: torch.save(torch.zeros(9), path), "torch.save"),
        ("data_batch_1", lambda path: path.write_bytes(pickle.dumps({"data": 1})), "pickle; .*cifar10:DIR"),
        ("a.tfrecord", magic(b"\x10\0\0\0\0\0\0\0"), "TFRecord file"),
        ("a.rec", magic(b"\x0a\x23\xd7\xce"), "RecordIO file"),
        ("train-images-idx3-ubyte", magic(b"\0\0\x08\x03"), "IDX file"),
        ("a.beton", magic(b"\2\0\2\0"), r".beton file; .*fastclr info"),
        (
            "a.csv",
            lambda path: path.write_text("file,label\n" + "ü.jpg,1\n" * 1000),
            "CSV table; give the folder",
        ),
        ("a.json", lambda path: path.write_text('{"a": 1}'), "JSON; give the folder"),
        ("a.txt", lambda path: path.write_text("täxt", encoding="utf-16"), "text; give the folder"),
        ("a.tar", lambda path: path.write_text("<!DOCTYPE html><html>Sign in"), "HTML page; .*download"),
        (
            "a.tar",
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "git lfs pull",
        ),
        ("a.jpg", lambda path: Image.new("RGB", (9, 9)).save(path), "an image; give the folder"),
        ("a.png", lambda path: Image.new("RGB", (9, 9)).save(path), "an image; give the folder"),
        ("a.mp4", magic(b"\0\0\0\x20ftypisom"), "a video; "),
        ("a.tar", lambda path: path.write_bytes(b""), "an empty file"),
        ("a.tar", lambda path: path.write_bytes(b"\x01\xff\xfe" * 1000), "3,000 bytes of an unknown kind"),
        ("a.tar", lambda path: path.write_bytes(b"\0\1" * 200), "400 bytes of an unknown kind"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: no tar file, but .*{message}") as caught:
        open_source([str(tmp_path / name)])
    assert str(caught.value).isprintable()


def test_a_tar_may_begin_like_something_else(tmp_path):
    """The name of the first member is at the file's start."""
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("BZh.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert open_source([str(tmp_path / "a.tar")]).read(0) == b"abc"
