"""What compiling costs: seconds from nothing and from the object cache, by phase, and memory, beside ONNX Runtime's.

    python -m benchmarks.compile_time resnet50.onnx vgg19.onnx
    python -m benchmarks.compile_time resnet50.onnx --need-cold 20 --need-warm 1

Each number comes from a process of its own: `cold` with an empty cache, `warm` with what `cold` left there (best of
--runs). Wall seconds count from the start of `import tilewright` to the compiled model; `cpu` is processor time of the
process and its workers, which other load on the machine disturbs less. The phases are wall seconds of the main thread;
`code` includes waiting for workers. Memory is the peak of the process after one call.
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

PHASES = {  # phase -> the functions whose time it is, less that of other phases inside them
    "read": ("tilewright.compiler.frontends:load", "tilewright.compiler.frontends.onnx.source:OnnxSource.import_graph"),
    "passes": ("tilewright.compiler.pipeline:run", "tilewright.compiler.build:split_preparation"),
    "fuse": ("tilewright.compiler.build:fuse", "tilewright.compiler.build:plan_views"),
    "lower": ("tilewright.compiler.build:lower",),
    "schedule": ("tilewright.compiler.schedule.source:default_schedule",),
    "emit": ("tilewright.compiler.build:emit_kernel", "tilewright.compiler.build:emit_entry"),
    "code": ("tilewright.compiler.build:build", "tilewright.backends.instance:load_image"),
    "weights": ("tilewright.backends.instance:Preparation.evaluate",),
}
COLUMNS = ("import", *PHASES, "rest")


class Clock:
    """Seconds by phase; the time of a phase inside another one counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(COLUMNS, 0.0)
        self._inner = [0.0]

    def wrap(self, phase: str, place: str) -> None:
        """Measures the function `module:name` from now on."""
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner: object = importlib.import_module(module)
        for o in owners:
            owner = getattr(owner, o)
        setattr(owner, name, self._timed(phase, getattr(owner, name)))

    def _timed(self, phase: str, f: Callable[..., object]) -> Callable[..., object]:
        def timed(*args: object, **kwargs: object) -> object:
            begin = time.perf_counter()
            self._inner.append(0.0)
            try:
                return f(*args, **kwargs)
            finally:
                spent = time.perf_counter() - begin
                self.seconds[phase] += spent - self._inner.pop()
                self._inner[-1] += spent
        return timed


def _measure_tilewright(path: str) -> dict[str, float]:
    clock, begin = Clock(), time.perf_counter()
    import tilewright as tw
    compile_ = tw.compile
    clock.seconds["import"] = time.perf_counter() - begin
    for phase, places in PHASES.items():
        for place in places:
            clock.wrap(phase, place)
    start = time.perf_counter()
    exe = compile_(path)
    wall = clock.seconds["import"] + time.perf_counter() - start
    clock.seconds["rest"] = wall - sum(clock.seconds.values())
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    if all(isinstance(d, int) for s in exe.inputs for d in getattr(s, "shape", ("",))):
        exe(*(np.zeros(s.shape, s.dtype) for s in exe.inputs))  # type: ignore[union-attr]
    return {"wall": wall, "cpu": cpu, "memory": _peak(), **clock.seconds}


def _measure_onnxruntime(path: str) -> dict[str, float]:
    begin = time.perf_counter()
    import onnxruntime as ort  # pyright: ignore[reportMissingImports]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wall = time.perf_counter() - begin
    ins = session.get_inputs()
    if all(isinstance(d, int) for i in ins for d in i.shape):
        kinds = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(int64)": "i8", "tensor(int32)": "i4"}
        session.run(None, {i.name: np.zeros(i.shape, kinds[i.type]) for i in ins})
    return {"wall": wall, "memory": _peak()}


def _peak() -> float:
    """Peak memory of this process in MB. (ru_maxrss may be that of the process that started this one.)"""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(engine: str, path: str, env: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.compile_time", "--child", engine, path]
    run = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def measure(path: str, runs: int) -> list[tuple[str, dict[str, float]]]:
    """(kind, numbers) for cold and warm starts and, where it is installed, ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": f"{tempfile.gettempdir()}/tilewright-benchmark-bytecode", "TILEWRIGHT_CACHE": "0"}
        # bytecode beforehand, as installed packages have it
        subprocess.run([sys.executable, "-c", "import tilewright; tilewright.compile"], env=env, check=True)
        env["TILEWRIGHT_CACHE"] = folder
        cold = _child("tilewright", path, env)
        warm = min((_child("tilewright", path, env) for _ in range(runs)), key=lambda r: r["wall"])
        out = [("cold", cold), ("warm", warm)]
        if find_spec("onnxruntime"):
            out.append(("onnxruntime", min((_child("onnxruntime", path, env) for _ in range(runs)), key=lambda r: r["wall"])))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+", metavar="model.onnx")
    ap.add_argument("--runs", type=int, default=3, help="warm starts, of which the fastest counts")
    ap.add_argument("--need-cold", type=float, default=float("inf"), help="seconds; exit code 1 if a model takes more")
    ap.add_argument("--need-warm", type=float, default=float("inf"))
    ap.add_argument("--child", choices=("tilewright", "onnxruntime"), help=argparse.SUPPRESS)
    a = ap.parse_args(argv)
    if a.child:
        print(json.dumps((_measure_tilewright if a.child == "tilewright" else _measure_onnxruntime)(a.models[0])))
        return 0
    print(f"{'model':<18}{'start':<13}{'wall':>7}{'cpu':>7}{'MB':>7}   " + "".join(f"{c:>9}" for c in COLUMNS))
    late = False
    for path in a.models:
        for kind, r in measure(path, a.runs):
            phases = "".join(f"{r[c]:>9.2f}" if c in r else "" for c in COLUMNS)
            cpu = f"{r['cpu']:>7.2f}" if "cpu" in r else f"{'':>7}"
            print(f"{Path(path).stem:<18}{kind:<13}{r['wall']:>7.2f}{cpu}{r['memory']:>7.0f}   {phases}", flush=True)
            late |= r["wall"] > {"cold": a.need_cold, "warm": a.need_warm}.get(kind, float("inf"))
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
