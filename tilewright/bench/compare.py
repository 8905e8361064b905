"""Engines side by side on one model: outputs checked first, then bursts of calls by turns.

    c = compare(Job(path, inputs, threads=1), ["tilewright", "onnxruntime", "openvino"])
    c.ratio()     # best peer / tilewright: above 1 is faster than every peer
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

import numpy as np

from .engines import ENGINES, Job
from .isolated import EngineError, Isolated

OURS = "tilewright"
REFERENCES = ("onnxruntime", "openvino", "torch", "jax", "numpy", OURS)  # whose outputs the others' are compared with
TOLERANCE = {"f32": 1e-3, "bf16": 5e-2, "int8": 1e-1}  # of worst_error
_PAUSE = 0.02  # seconds between bursts: thread pools of the engine before stop spinning


@dataclass(frozen=True, slots=True)
class Timing:
    """One engine on one model. status: "ok", "absent", "failed" (text: why) or "wrong" (error is above the tolerance; then
    its times do not count). Seconds of a call: median, 10th and 90th percentile over all samples, and the medians of each
    round. memory: bytes by which the peak of the process grew. error: see worst_error, None where nothing was compared."""

    engine: str
    version: str = ""
    status: str = "ok"
    text: str = ""
    error: float | None = None
    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    samples: int = 0
    rounds: tuple[float, ...] = ()
    prepare: float = 0.0
    first: float = 0.0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model under one setting. `point`: where it lies in a scaling suite, such as {"threads": 2}."""

    model: str
    threads: int
    precision: str
    reference: str
    timings: tuple[Timing, ...]
    point: dict[str, int] = field(default_factory=dict)

    def of(self, engine: str) -> Timing | None:
        return next((t for t in self.timings if t.engine == engine and t.status == "ok"), None)

    def best_peer(self, value: Callable[[Timing], float] = lambda t: t.median) -> Timing | None:
        peers = [t for t in self.timings if t.engine != OURS and t.status == "ok" and value(t) > 0]
        return min(peers, key=value, default=None)

    def ratio(self, value: Callable[[Timing], float] = lambda t: t.median) -> float | None:
        """The best peer's value over tilewright's; None where either is missing."""
        ours, peer = self.of(OURS), self.best_peer(value)
        return value(peer) / value(ours) if ours and peer and value(ours) > 0 else None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def comparison_from_json(d: dict) -> Comparison:
    """Inverse of `to_json`."""
    timings = tuple(Timing(**{**t, "rounds": tuple(t["rounds"])}) for t in d["timings"])
    return Comparison(d["model"], d["threads"], d["precision"], d["reference"], timings, d.get("point", {}))


def compare(job: Job, engines: Sequence[str], name: str = "", rounds: int = 5, seconds: float = 0.3, warm_up: float = 0.2,
            timeout: float = 600.0, point: dict[str, int] | None = None) -> Comparison:
    """Times `engines` on a job. Each round gives each engine one burst of `seconds`; the order turns from round to round."""
    made: dict[str, Timing] = {}
    with ExitStack() as stack:
        live: list[Isolated] = []
        for e in engines:
            adapter = ENGINES[e]
            if adapter.missing:
                made[e] = Timing(e, status="absent", text=f"{', '.join(adapter.missing)} not installed")
                continue
            try:
                live.append(stack.enter_context(Isolated(e, job, timeout)))
            except EngineError as error:
                made[e] = Timing(e, adapter.version, "failed", str(error))
        reference = next((i for r in REFERENCES for i in live if i.name == r), None)
        errors: dict[str, float | None] = {i.name: None for i in live}
        for i in list(live):
            if reference is None or i is reference:
                continue
            errors[i.name] = found = worst_error(i.outputs, reference.outputs)
            if found > TOLERANCE[job.precision]:
                made[i.name] = Timing(i.name, ENGINES[i.name].version, "wrong", f"outputs differ from {reference.name}'s", found)
                live.remove(i)
                i.close()
        for i, samples in _by_turns(live, rounds, seconds, warm_up).items():
            made[i.name] = _timing(i, samples, errors[i.name])
    return Comparison(name or job.model.stem, job.threads, job.precision, reference.name if reference else "",
                      tuple(made[e] for e in engines), dict(point or {}))


def _by_turns(live: Sequence[Isolated], rounds: int, seconds: float, warm_up: float) -> dict[Isolated, list[list[float]] | str]:
    """Samples by round; the text of the error where an engine died on the way."""
    samples: dict[Isolated, list[list[float]] | str] = {i: [] for i in live}
    for r in range(-1, rounds):  # round -1 is the warm-up
        turn = r % max(1, len(live))
        for i in (*live[turn:], *live[:turn]):
            time.sleep(_PAUSE if r >= 0 else 0)
            found = samples[i]
            if isinstance(found, str):
                continue
            try:
                burst = i.burst(seconds if r >= 0 else warm_up)
            except EngineError as e:
                samples[i] = str(e)
                continue
            if r >= 0:
                found.append(burst)
    return samples


def _timing(i: Isolated, samples: list[list[float]] | str, error: float | None) -> Timing:
    version = ENGINES[i.name].version
    if isinstance(samples, str):
        return Timing(i.name, version, "failed", samples, error)
    flat = [s for r in samples for s in r]
    low, median, high = (float(x) for x in np.percentile(flat, (10, 50, 90)))
    medians = tuple(float(np.median(r)) for r in samples)
    return Timing(i.name, version, "ok", "", error, median, low, high, len(flat), medians, i.prepare, i.first, i.memory)


def worst_error(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Largest |a - b| over all outputs, relative to the largest |b| of its output; inf where their number, shapes or NaNs
    differ, or exact values (integers, texts) do."""
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.dtype.kind not in "fV" or y.dtype.kind not in "fV":
            if not np.array_equal(x, y):
                return float("inf")
            continue
        p, q = x.astype(np.float64), y.astype(np.float64)
        same = p == q  # also infinities of one sign
        if not np.array_equal(np.isnan(p), np.isnan(q)) or not np.array_equal(np.isinf(p) & ~same, np.isinf(q) & ~same):
            return float("inf")
        part = ~same & np.isfinite(p) & np.isfinite(q)
        if part.any():
            scale = float(np.abs(q[np.isfinite(q)]).max())
            worst = max(worst, float(np.abs(p[part] - q[part]).max()) / (scale or 1.0))
        if (np.isinf(p) & ~same).any():
            return float("inf")
    return worst
