"""The command line: `tilewright` or `python -m tilewright`.

Exit codes: 0 done, 1 the work failed (a damaged or unsupported model, a full disk), 2 bad usage (an unknown option, a file
that is not there, an option's value that makes no sense). Errors are one sentence on stderr; `--debug` adds the traceback.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import TilewrightError
from . import tuning as _tuning  # noqa: F401  (registers its commands)
from .commands import app
from .console import error

__all__ = ["app", "main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line on `argv` (without the program's name; by default, the process's own) and exits."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        app([a for a in args if a != "--debug"], prog_name="tilewright")
    except TilewrightError as e:
        if debug:
            raise
        error(str(e))
    except OSError as e:
        if debug:
            raise
        error(f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e))
    raise SystemExit(1)
