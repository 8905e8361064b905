"""Results that nobody measured: every kind of thing that the pages show."""
from __future__ import annotations

from benchmarks.results import Results, SuiteResult
from tilewright.backends.profile import CallProfile, Profile
from tilewright.bench.compare import Comparison, Timing
from tilewright.bench.machine import Description

MACHINE: Description = {
    "cpu": "A <processor>", "llvm_cpu": "generic", "arch": "x86_64", "features": "avx2 fma", "cores": 2, "l1d": 49152, "l2": 2 << 20,
    "l3": 32 << 20, "memory": 16 << 30, "system": "Linux 6", "python": "3.12", "tilewright": "0.1.0", "load": [0.1, 0.2, 0.3],
    "engines": {"tilewright": "0.1.0", "onnxruntime": "1.20", "openvino": "2025.1", "jax": "absent"}, "time": "2026-01-01 00:00 UTC"}


def comparison(model: str, ours: float, ort: float, ov: float, threads: int = 1,
               point: dict[str, int] | None = None) -> Comparison:
    timings = [Timing(e, "1", "ok", "", 1e-7, t, t * 0.9, t * 1.3, 100, (t,) * 3, 0.1, t, 1 << 20)
               for e, t in (("tilewright", ours), ("onnxruntime", ort), ("openvino", ov))]
    absent = Timing("jax", status="absent", text="jax not installed")
    return Comparison(model, threads, "f32", "onnxruntime", (*timings, absent), point or {})


def results() -> Results:
    wrong = Comparison("odd|one", 1, "f32", "onnxruntime", (
        Timing("tilewright", "1", "failed", "UnsupportedError: no <such> thing"), Timing("onnxruntime", "1", "ok", median=1e-3),
        Timing("openvino", "1", "wrong", "outputs differ from onnxruntime's", 0.5)))
    cnn = SuiteResult("cnn", "image classifiers", "median",
                      (comparison("resnet", 0.05, 0.07, 0.06), comparison("slow", 0.02, 0.03, 0.01), wrong))
    memory = SuiteResult("memory", "peak", "memory", (comparison("resnet", 1, 1, 1),))
    scaling = SuiteResult("scaling", "with threads", "median", (
        *(comparison("resnet", 0.05 / n, 0.07 / n**0.5, 0.06, n, {"threads": n}) for n in (1, 2, 4)),
        *(comparison(f"net x{n}", 0.01 * n, 0.02 * n, 0.03 * n, 1, {"batch": n}) for n in (1, 2, 4))))
    calls = tuple(CallProfile(f"conv {k}", f"k{k}", 1e-4 * k, 9e-5 * k, 2e-4 * k, 10**6 * k * k, 10**5, (k - 2,) if k > 2 else ())
                  for k in range(1, 6))
    profile = Profile(calls, 1.5e-3, 10, 100.0, 1e10)
    return Results(MACHINE, 5, 0.3, (cnn, memory, scaling), {("cnn", "resnet"): profile})
