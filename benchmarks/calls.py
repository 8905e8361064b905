"""What calling a small model from Python costs, beside NumPy's own functions and the peers, in one run.

    python -m benchmarks.calls [--seconds 2] [--need 1.0]

The model is one add. All rows of a table take turns in short bursts, and each counts with its median and its best burst:
the clock of a machine drifts, and other programs run. `ctypes` is the same executable on the road that interpreters take
which native calls do not know (TILEWRIGHT_SLOW_CALLS=1): the same checks, in Python. `identity` is a C function that returns
its argument: what CPython needs for any call. --need fails the run where np.add is not so many times as slow as our call of
16 floats.
"""
from __future__ import annotations

import argparse
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from operator import index as identity

import numpy as np

import tilewright as tw
from tilewright.ir.text import parse_graph

SIZES = (16, 1_000, 100_000)
_BURST_SECONDS = 0.002
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """`statement` is timed with `names` in scope, as a user writes it: no closure around it."""

    what: str
    statement: str
    names: dict[str, object]


def rows(n: int) -> list[Row]:
    """What is compared, for an add of `n` floats. Every result is checked first."""
    text = f"graph @add(%x: f32[{n}], %y: f32[{n}]) -> f32[{n}] {{\n  %z = add(%x, %y) : f32[{n}]\n  return %z\n}}"
    exe = tw.compile(parse_graph(text), threads=1)
    x = np.arange(n, dtype=np.float32)
    y, out = x + 1, np.empty_like(x)
    names: dict[str, object] = {"exe": exe, "x": x, "y": y, "out": out, "np": np, "slow": tw.Executable.__call__, "identity": identity}
    found = [Row("tilewright exe(x, y)", "exe(x, y)", names), Row("tilewright exe.run_into(out, x, y)", "exe.run_into(out, x, y)", names),
             Row("tilewright by ctypes", "slow(exe, x, y)", names), Row("np.add(x, y)", "np.add(x, y)", names),
             Row("np.add(x, y, out)", "np.add(x, y, out)", names), Row("np.empty_like(x)", "np.empty_like(x)", names),
             Row("identity(1)", "identity(1)", names), *_onnxruntime(n, names)]
    for r in found:
        got = eval(r.statement, dict(r.names))
        want = x if "empty" in r.what or "identity" in r.what else x + y
        got = out if got is None else got[0] if isinstance(got, list) else got
        assert "empty" in r.what or "identity" in r.what or np.array_equal(got, want), r.what
    return found


def _onnxruntime(n: int, names: dict[str, object]) -> list[Row]:
    if not find_spec("onnxruntime") or not find_spec("onnx"):
        return []
    import onnx
    import onnxruntime
    graph = onnx.parser.parse_graph(f"add (float[{n}] x, float[{n}] y) => (float[{n}] z) {{ z = Add(x, y) }}")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return [Row("onnxruntime", "run(None, {'x': x, 'y': y})", {**names, "run": session.run})]


def measure(found: list[Row], seconds: float) -> list[tuple[float, float]]:
    """(median, best) seconds a call for each row, all rows together in about `seconds`."""
    timers = [timeit.Timer(r.statement, globals=r.names) for r in found]
    counts = [max(1, int(_BURST_SECONDS / max(t.timeit(20) / 20, 1e-9))) for t in timers]
    samples: list[list[float]] = [[] for _ in found]
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(samples[0]) < 5:
        for t, count, s in zip(timers, counts, samples, strict=True):
            s.append(t.timeit(count) / count)
    return [(float(np.median(s)), min(s)) for s in samples]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each table")
    parser.add_argument("--need", type=float, help="fail where np.add(x, y) takes less than so many times our call of 16 floats")
    args = parser.parse_args()
    ahead = 0.0
    for n in SIZES:
        found = rows(n)
        times = measure(found, args.seconds)
        ours, add = times[0], times[3]
        print(f"\n{n} floats{'':28} median ns     best ns   np.add / it (best)")
        for r, (median, best) in zip(found, times, strict=True):
            print(f"  {r.what:34} {median * 1e9:11.0f} {best * 1e9:11.0f} {add[1] / best:11.2f}")
        if n == SIZES[0]:
            ahead = min(add[0] / ours[0], add[1] / ours[1])
    print(f"\nnp.add takes {ahead:.2f} times as long as the call of {SIZES[0]} floats (the lesser of median and best)")
    return 1 if args.need and ahead < args.need else 0


if __name__ == "__main__":
    sys.exit(main())
