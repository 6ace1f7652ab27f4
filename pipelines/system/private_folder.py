"""A folder under the temporary directory that belongs to this user alone."""

import os
import stat
import tempfile
from pathlib import Path


def private_folder(name: str) -> Path | None:
    """Return a folder that only this user can read and write, or None if there can be none.

    It is `fastclr-NAME-UID` under the temporary directory (`TMPDIR`), made if it is missing.  A link, or a folder of
    another user, is not used: its owner could decide what is loaded from it.

    Args:
        name: what the folder is for.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = Path(tempfile.gettempdir()) / f"fastclr-{name}-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    if os.name == "posix" and (found.st_uid != user or found.st_mode & 0o077):
        return None
    return folder if stat.S_ISDIR(found.st_mode) and os.access(folder, os.W_OK | os.X_OK) else None
