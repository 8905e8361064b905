"""Messages between the tuner and its worker processes: a JSON header and byte strings, each with its length before it.

Nothing is pickled: a worker that was broken by a bad kernel can send nonsense, but cannot make the tuner run it.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import BinaryIO, cast

from ..backends.llvm.worker import read_text, write_text

Header = dict[str, object]
MOST_BLOBS = 64


class Closed(Exception):
    """The other side is gone, or sent no message."""


def send(f: BinaryIO, header: Header, blobs: Sequence[bytes] = ()) -> None:
    """Raises Closed."""
    try:
        write_text(f, json.dumps(header | {"blobs": len(blobs)}).encode())
        for b in blobs:
            write_text(f, b)
        f.flush()
    except (OSError, ValueError) as e:  # a broken pipe, or a closed file
        raise Closed(str(e)) from None


def receive(f: BinaryIO) -> tuple[Header, list[bytes]]:
    """Raises Closed; TimeoutError where reading does."""
    try:
        head = json.loads(read_text(f) or b"")
        count = head.get("blobs", 0) if isinstance(head, dict) else -1
        blobs = [read_text(f) for _ in range(count)] if isinstance(count, int) and 0 <= count <= MOST_BLOBS else [None]
    except TimeoutError:
        raise
    except (OSError, ValueError, OverflowError, MemoryError) as e:
        raise Closed(str(e)) from None
    if None in blobs:
        raise Closed("the message ends too early")
    return head, cast("list[bytes]", blobs)
