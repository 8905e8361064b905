"""Files that appear whole or not at all."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes to a temporary file beside `path`, syncs it, renames it. Raises InputError where that cannot be done."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as e:
        raise InputError(f"{path} cannot be written: {e.strerror or e}") from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
