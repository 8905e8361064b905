"""What the commands print: rich on a terminal, plain aligned text anywhere else, so that output can be piped and compared."""
from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", numbers: Sequence[int] = ()) -> None:
    """Prints `rows` under `headers`; the columns listed in `numbers` are set flush right."""
    if not sys.stdout.isatty():
        _plain(headers, rows, numbers)
        return
    out = Table(title=title or None, title_justify="left")
    for k, h in enumerate(headers):
        out.add_column(h, justify="right" if k in numbers else "left", overflow="fold")
    for r in rows:
        out.add_row(*r)
    Console(markup=False, highlight=False).print(out)


def _plain(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> None:
    lines = [headers, *rows]
    widths = [max(len(r[k]) for r in lines) for k in range(len(headers))]
    for r in lines:
        cells = (c.rjust(w) if k in numbers else c.ljust(w) for k, (c, w) in enumerate(zip(r, widths, strict=True)))
        print("  ".join(cells).rstrip())


def error(message: str) -> None:
    """One error on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print("error: " + message, style="red", markup=False)


def note(message: str) -> None:
    """What went on, for people: on stderr, so that stdout holds results only."""
    print(message, file=sys.stderr)


def duration(seconds: float) -> str:
    """"1.23 ms", with three significant digits.

    >>> duration(0.00123)
    '1.23 ms'
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:#.3g}".rstrip(".") + " " + unit
    raise AssertionError("unreachable")


def size(n: int) -> str:
    """Bytes, for people.

    >>> size(3 << 20)
    '3.0 MiB'
    """
    value, units = float(n), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
