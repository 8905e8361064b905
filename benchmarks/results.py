"""What was measured, as data: JSON in and out, and the summaries that the table, the page and RESULTS.md share."""
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tilewright.backends.profile import CallProfile, Profile, bytes_text, time_text
from tilewright.bench.compare import OURS, Comparison, Timing, comparison_from_json
from tilewright.bench.machine import Description

from .suites import Value

VERSION = 1


@dataclass(frozen=True, slots=True)
class SuiteResult:
    name: str
    about: str
    value: Value
    comparisons: tuple[Comparison, ...]

    def of(self, t: Timing) -> float:
        """What counts in this suite."""
        return {"median": t.median, "ready": t.prepare + t.first, "memory": float(t.memory)}[self.value]

    def text(self, x: float) -> str:
        return bytes_text(x) if self.value == "memory" else time_text(x)

    def ratio(self, c: Comparison) -> float | None:
        """The best peer's value over tilewright's: above 1 is ahead."""
        return c.ratio(self.of)

    def mean(self, threads: int) -> float | None:
        """The geometric mean of the ratios at so many threads; None where there are none."""
        found = [r for c in self.comparisons if c.threads == threads and (r := self.ratio(c))]
        return math.exp(sum(map(math.log, found)) / len(found)) if found else None

    @property
    def threads(self) -> tuple[int, ...]:
        return tuple(sorted({c.threads for c in self.comparisons}))


@dataclass(frozen=True, slots=True)
class Results:
    """profiles: (suite, model) -> the profile of its kernels. rounds, seconds: of the timing."""

    machine: Description
    rounds: int
    seconds: float
    suites: tuple[SuiteResult, ...]
    profiles: dict[tuple[str, str], Profile] = field(default_factory=dict)

    @property
    def engines(self) -> tuple[str, ...]:
        """In order of first appearance, tilewright first."""
        found = dict.fromkeys(t.engine for s in self.suites for c in s.comparisons for t in c.timings)
        return tuple(sorted(found, key=lambda e: e != OURS))

    def save(self, path: Path) -> None:
        suites = [{"name": s.name, "about": s.about, "value": s.value, "comparisons": [c.to_json() for c in s.comparisons]}
                  for s in self.suites]
        profiles = [{"suite": k[0], "model": k[1], **asdict(p)} for k, p in self.profiles.items()]
        data = {"version": VERSION, "machine": self.machine, "rounds": self.rounds, "seconds": self.seconds, "suites": suites,
                "profiles": profiles}
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Inverse of `Results.save`. Raises ValueError for a file of another version."""
    d = json.loads(path.read_text(encoding="utf-8"))
    if d.get("version") != VERSION:
        raise ValueError(f"{path} has version {d.get('version')}, expected {VERSION}")
    suites = tuple(SuiteResult(s["name"], s["about"], s["value"], tuple(map(comparison_from_json, s["comparisons"]))) for s in d["suites"])
    return Results(d["machine"], d["rounds"], d["seconds"], suites, {(p["suite"], p["model"]): _profile(p) for p in d["profiles"]})


def _profile(p: dict) -> Profile:
    calls = tuple(CallProfile(**{**c, "reads": tuple(c["reads"])}) for c in p["calls"])
    return Profile(calls, p["seconds"], p["runs"], p["peak"], p["memory"])


def rows(s: SuiteResult, engines: Sequence[str]) -> list[tuple[str, ...]]:
    """A heading and a row for each comparison: model, threads, each engine's value and spread, the ratio."""
    head = ("model", "threads", *engines, "best peer / ours")
    return [head, *((c.model, str(c.threads), *(_cell(s, c, e) for e in engines), f"{r:.2f}" if (r := s.ratio(c)) else "-")
                    for c in s.comparisons)]


def _cell(s: SuiteResult, c: Comparison, engine: str) -> str:
    t = next((t for t in c.timings if t.engine == engine), None)
    if t is None or t.status != "ok":
        return "-" if t is None else t.status
    spread = f" ±{(t.high - t.low) / 2 / t.median:.0%}" if s.value == "median" and t.median else ""
    return s.text(s.of(t)) + spread


def losses(r: Results) -> list[tuple[SuiteResult, Comparison, float]]:
    """Where a peer is ahead, the worst first."""
    found = [(s, c, x) for s in r.suites for c in s.comparisons if (x := s.ratio(c)) is not None and x < 1]
    return sorted(found, key=lambda f: f[2])


def failures(r: Results) -> list[tuple[str, str, str]]:
    """(engine, what happened, models), each once."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for s in r.suites:
        for c in s.comparisons:
            for t in c.timings:
                if t.status in ("failed", "wrong"):
                    wrong = f"wrong: {t.text} (error {t.error:.1e})" if t.status == "wrong" else t.text
                    found.setdefault((t.engine, wrong), {})[c.model] = None
    return [(e, why, ", ".join(where)) for (e, why), where in found.items()]


def scaling(s: SuiteResult, axis: str) -> dict[str, list[tuple[str, list[tuple[int, float]]]]]:
    """Model family -> (engine, [(place on the axis, value)]), for one axis of a scaling suite."""
    made: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for c in s.comparisons:
        if axis not in c.point:
            continue
        family = c.model if axis == "threads" else c.model.split(" ")[0].rsplit("_", 1)[0] if axis == "sequence" else c.model.split(" ")[0]
        for t in c.timings:
            if t.status == "ok":
                made.setdefault(family, {}).setdefault(t.engine, []).append((c.point[axis], s.of(t)))
    return {f: list(engines.items()) for f, engines in made.items()}


def machine_rows(r: Results) -> list[tuple[str, str]]:
    """The machine, for people."""
    m = r.machine
    engines = m["engines"]
    assert isinstance(engines, dict)
    present = ", ".join(f"{e} {v}" for e, v in engines.items() if v != "absent")
    absent = ", ".join(e for e, v in engines.items() if v == "absent")
    caches = ", ".join(f"{k} {int(str(m[k])) / 1024:.0f} KiB" for k in ("l1d", "l2", "l3"))
    load = ", ".join(map(str, m["load"])) if isinstance(m["load"], list) else ""
    return [("processor", f"{m['cpu']} ({m['llvm_cpu']}, {m['arch']})"), ("cores used", str(m["cores"])),
            ("caches", caches), ("memory", bytes_text(float(str(m["memory"])))),
            ("system", f"{m['system']}, Python {m['python']}"), ("engines", present), ("not installed", absent or "none"),
            ("load before the run", load), ("measured", str(m["time"])),
            ("method", f"{r.rounds} rounds of {r.seconds:g} s for each engine in turn; medians over all calls")]
