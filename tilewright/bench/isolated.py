"""Starts engines in processes of their own, so that no two thread pools, allocators or caches of code share a measurement."""
from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np

from .engines import Job
from .worker import load_arrays


class EngineError(Exception):
    """The engine does not run this model; the text says why."""


class Isolated:
    """A running engine. prepare, first: seconds to get ready and of the first call. memory: bytes by which the peak of the
    process's memory grew over both. outputs: of the first call. Raises EngineError, here and in `burst`."""

    def __init__(self, name: str, job: Job, timeout: float = 600.0) -> None:
        self.name, self._timeout = name, timeout
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-bench-")
        folder = Path(self._folder.name)
        np.savez(folder / "inputs.npz", *job.inputs)
        (folder / "request.json").write_text(json.dumps({"engine": name, "model": str(job.model.resolve()), "threads": job.threads,
                                                         "precision": job.precision, "schedules": job.schedules, "cold": job.cold,
                                                         "strict": job.strict}))
        self._errors = open(folder / "errors.txt", "w+")  # noqa: SIM115  (closed in close)
        self._process = subprocess.Popen([sys.executable, "-m", "tilewright.bench.worker", str(folder)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._errors, text=True)
        try:
            ready = cast("dict[str, float]", self._answer())
            self.outputs = load_arrays(folder / "outputs.npz")
        except EngineError:
            self.close()
            raise
        self.prepare, self.first, self.memory = ready["prepare"], ready["first"], int(ready["memory"])

    def burst(self, seconds: float) -> list[float]:
        """Seconds a call, for calls back to back over about `seconds`."""
        assert self._process.stdin
        try:
            print(json.dumps({"seconds": seconds}), file=self._process.stdin, flush=True)
        except OSError:
            raise EngineError(self._reason()) from None
        return cast("list[float]", self._answer())

    def _answer(self) -> object:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], self._timeout)[0]:
            raise EngineError(f"no answer in {self._timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(self._reason())
        return json.loads(line)

    def _reason(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [x.strip() for x in self._errors.read().splitlines() if x.strip()]
        raised = [x for x in lines if x.split(":")[0].split(".")[-1].endswith(("Error", "Exception", "Fail"))]
        said = (raised or lines or [""])[-1]
        return said[:300] if code > 0 and said else f"ended by signal {-code}" if code < 0 else f"ended with code {code}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for f in (self._process.stdin, self._process.stdout, self._errors):
            if f and not f.closed:
                with contextlib.suppress(BrokenPipeError):  # a request that the dead engine never took is flushed once more
                    f.close()
        self._folder.cleanup()

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
