"""Worker processes of the tuner: started, fed, watched, killed and started again."""
from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import BinaryIO, cast

from .wire import Closed, Header, receive, send

_PR_SET_PDEATHSIG = 1


class Died(Exception):
    """The process ended; `reason` is one sentence. `slow`: it was killed because it took too long."""

    def __init__(self, reason: str, slow: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.slow = reason, slow


class Process:
    """One worker running `module`, started when first needed and anew after it died. Used by one thread at a time, which must
    live as long: the system ends the worker with the thread that started it."""

    def __init__(self, module: str, args: Sequence[str] = (), cores: Iterable[int] = ()) -> None:
        self._command = [sys.executable, "-m", module, *args]
        self._cores = set(cores)
        self._child: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as this object; a pipe would fill up)
        self.starts = 0

    def ask(self, header: Header, blobs: Sequence[bytes], seconds: float) -> tuple[Header, list[bytes]]:
        """One request, one reply. Raises Died."""
        self.tell(header, blobs)
        return self.hear(seconds)

    def tell(self, header: Header, blobs: Sequence[bytes] = ()) -> None:
        """Raises Died."""
        child = self._running()
        try:
            send(cast(BinaryIO, child.stdin), header, blobs)
        except Closed:
            raise Died(self._end()) from None

    def hear(self, seconds: float) -> tuple[Header, list[bytes]]:
        """The next reply. Raises Died, also where there is none in that time (then the worker is killed)."""
        pipe = _Pipe(cast(BinaryIO, self._running().stdout).fileno(), time.monotonic() + seconds)
        try:
            return receive(cast(BinaryIO, pipe))
        except TimeoutError:
            self._end()
            raise Died(f"no answer in {seconds:.1f} s", slow=True) from None
        except Closed:
            raise Died(self._end()) from None

    @property
    def fresh(self) -> bool:
        """Whether there is no process yet, or it has died: it knows nothing of what it was told."""
        return self._child is None or self._child.poll() is not None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
            self.starts += 1
            if self._cores:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(self._child.pid, self._cores)
        return self._child

    def _end(self) -> str:
        """Kills what is left of the process; says how it ended."""
        child, self._child = self._child, None
        if child is None:
            return "not running"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)  # a worker that is ending says more than one that is killed
        killed = child.poll() is None
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                cast(BinaryIO, pipe).close()
        self._said.seek(0)
        said = self._said.read()
        self._said.seek(0)
        self._said.truncate()
        last = next((x for x in reversed(said.decode("utf-8", "replace").splitlines()) if x.strip()), "")
        if killed:
            return "killed"
        if code < 0:
            return f"ended by {_signal(-code)}" + (f": {last[:300]}" if last else "")
        return f"ended with code {code}" + (f": {last[:300]}" if last else "")

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._end()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Pipe:
    """A pipe whose reads end at a time: `read` raises TimeoutError (an OSError) then."""

    def __init__(self, handle: int, stop: float) -> None:
        self._handle, self._stop = handle, stop

    def read(self, size: int) -> bytes:
        poll, parts = select.poll(), []
        poll.register(self._handle, select.POLLIN)
        while size:
            left = self._stop - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                raise TimeoutError
            data = os.read(self._handle, min(size, 1 << 20))
            if not data:
                break
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def child() -> tuple[BinaryIO, BinaryIO]:
    """In a worker: its requests and replies. It ends with its parent, however that ends; what it prints goes to stderr."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tuner's to handle
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, replies
