"""Compiling and calling models in a process of its own, which may crash or hang without harm to the tests."""
from __future__ import annotations

import multiprocessing as mp
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import cast

import numpy as np

TIMEOUT_SECONDS = 120
Answer = tuple[str, object]  # ("ok", one list of outputs for each call), ("refused", a TilewrightError's message), ("failed", any other's)


class Worker:
    """One process at a time; it is replaced after a crash or a hang."""

    def __init__(self) -> None:
        self._context = mp.get_context("spawn")  # a fork would inherit threads and LLVM's state
        self._start()

    def run(self, model: bytes, calls: Sequence[Sequence[object]]) -> Answer:
        """What `tilewright.compile(model)` returns for each call, or how it ended: ("crash", exit code) or ("hang", seconds) as well."""
        self._pipe.send((model, calls))
        try:
            if self._pipe.poll(TIMEOUT_SECONDS):
                return cast(Answer, self._pipe.recv())
            answer = ("hang", TIMEOUT_SECONDS)
        except (EOFError, OSError):
            self._process.join()
            answer = ("crash", self._process.exitcode)
        self.stop()
        self._start()
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _start(self) -> None:
        self._pipe, far = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(far,), daemon=True)
        self._process.start()
        far.close()


def _serve(pipe: Connection) -> None:
    import tilewright as tw
    np.seterr(all="ignore")
    while True:
        try:
            model, calls = pipe.recv()
        except EOFError:
            return
        try:
            exe = tw.compile(model)
            answer = ("ok", [_listed(exe(*inputs)) for inputs in calls])
        except tw.TilewrightError as e:
            answer = ("refused", str(e))
        except Exception as e:  # noqa: BLE001  (whatever it is, it is this model's answer)
            answer = ("failed", f"{type(e).__name__}: {e}")
        pipe.send(answer)


def _listed(result: object) -> list[object]:
    return list(result) if isinstance(result, tuple) else [result]
