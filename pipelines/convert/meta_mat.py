"""Reads the table of classes in ImageNet's `meta.mat` (stdin) and prints it as JSON: a program, run by devkit.py.

It has a process of its own because scipy's reader can crash, or take all memory, on a corrupt file.  So it imports
nothing of ours.
"""

import io
import json
import sys

FIELDS = ("ILSVRC2012_ID", "WNID", "words", "num_children")
MAX_MEMORY = 2 << 30
"""Bytes of address space beyond what is there when the file is read."""


def main() -> None:
    from scipy.io import loadmat

    data = sys.stdin.buffer.read()
    limit_memory()
    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = [{name: row[name] for name in FIELDS} for row in synsets.reshape(-1)]
        table = [
            [int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"]), int(row["num_children"])]
            for row in rows
        ]
    # scipy raises whatever its parser runs into
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    json.dump(table, sys.stdout)


def limit_memory() -> None:
    try:
        import resource
    except ImportError:  # no Unix
        return
    with open("/proc/self/statm", "rb") if sys.platform == "linux" else io.BytesIO(b"0") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, resource.RLIM_INFINITY))
    # a crash is expected to be possible, and leaves no file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
