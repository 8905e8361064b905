"""The tuning log: one JSON object a line, appended to, each line complete in itself.

    {"v":1, "task":hash, "workload":text, "target":{triple,cpu,features,cores,caches}, "threads":n, "schedule":[…],
     "status":"ok|compile_error|wrong_result|timeout|crash", "samples_ns":[…], "error":null|text,
     "tilewright":version, "llvm":version, "seed":n, "time":iso, "base_ns":[…]}

`base_ns`, which a record may lack, are samples of the compiler's own schedule, taken by turns with `samples_ns`: what another record says
of it was taken at another time, maybe on a busier machine.

A schedule of no steps is the compiler's own. A record whose workload starts with "model" says what was decided for a whole
model: its schedule lists [task, schedule] pairs, its samples are of whole calls.

Any number of processes may append at once: a batch is one write under the file's lock, then fsync. A process that dies in
the middle leaves at most one torn line, which readers skip with a warning, as they do with lines that are no records.
"""
from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import llvmlite

from ..backends.target import Target
from ..errors import ModelError
from ..version import __version__
from .samples import speedup

VERSION = 1
STATUSES = ("ok", "compile_error", "wrong_result", "timeout", "crash")
MODEL = "model\n"
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Steps = list[Json]


class LogWarning(UserWarning):
    """Lines of a tuning log were skipped."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where a record was measured: LLVM's triple, cpu and features; cores; bytes of the caches from L1 on."""

    triple: str
    cpu: str
    features: str
    cores: int
    caches: tuple[int, ...]

    @staticmethod
    def of(t: Target) -> Hardware:
        return Hardware(t.triple, t.cpu, t.features, t.cores, (t.l1d, t.l2, t.l3))

    @property
    def kind(self) -> tuple[str, str, frozenset[str]]:
        """Times are comparable between machines of one kind only: architecture and system, processor, features in use."""
        return self.triple, self.cpu, frozenset(f for f in self.features.split(",") if f.startswith("+"))


@dataclass(frozen=True, slots=True)
class Record:
    """One line. samples_ns: all of them, in the order they were taken; () where the trial failed. base_ns: of the compiler's own
    schedule beside them; () where not known."""

    task: str
    workload: str
    target: Hardware
    threads: int
    schedule: Steps
    status: str
    samples_ns: tuple[int, ...]
    error: str | None
    tilewright: str
    llvm: str
    seed: int
    time: str
    base_ns: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status == "ok" and bool(self.samples_ns)

    @property
    def ns(self) -> float:
        """The time to rank by: the least sample, which other load on the machine disturbs least."""
        return float(min(self.samples_ns))

    def gain(self, own: float = 0.0) -> float:
        """How many times faster than the compiler's own schedule: by the samples beside it, else by `own`, the ns of that schedule's
        record. 0: not known."""
        return speedup(self.samples_ns, self.base_ns, own) or own / self.ns

    @property
    def of_model(self) -> bool:
        return self.workload.startswith(MODEL)

    @property
    def key(self) -> tuple[str, str]:
        """Task and schedule: a trial is repeated when both are."""
        return self.task, json.dumps(self.schedule, sort_keys=True)

    def line(self) -> str:
        fields = asdict(self)
        if not self.base_ns:
            del fields["base_ns"]
        return json.dumps({"v": VERSION, **fields}, separators=(",", ":"), ensure_ascii=False)


def record(task: str, workload: str, target: Target, threads: int, schedule: Steps, status: str, samples_ns: Sequence[int],
           error: str | None, seed: int, base_ns: Sequence[int] = ()) -> Record:
    """A record of now, by this version."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return Record(task, workload, Hardware.of(target), threads, schedule, status, tuple(samples_ns), error, __version__,
                  llvmlite.__version__, seed, now, tuple(base_ns))


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "task": str, "workload": str, "target": dict, "threads": int, "schedule": list, "status": str, "samples_ns": list,
    "error": (str, type(None)), "tilewright": str, "llvm": str, "seed": int, "time": str}
_TARGET: dict[str, type | tuple[type, ...]] = {"triple": str, "cpu": str, "features": str, "cores": int, "caches": list}


def parse_line(text: str) -> Record:
    """The record of one line. Raises ModelError, whose text says what is wrong with it."""
    try:
        data = json.loads(text)
    except ValueError:
        raise ModelError("torn, or no JSON") from None
    if not isinstance(data, dict) or not {"v", *_FIELDS} <= data.keys():
        raise ModelError("not a tuning record")
    if data["v"] != VERSION:
        raise ModelError(f"version {data['v']!r:.20} of the format, this release reads {VERSION}")
    target = data["target"]
    bad = [k for k, kind in _FIELDS.items() if not isinstance(data[k], kind)]
    if not bad and (not _TARGET.keys() <= target.keys() or not all(isinstance(target[k], kind) for k, kind in _TARGET.items())):
        bad = ["target"]
    beside = data.get("base_ns", [])
    if not isinstance(beside, list):
        bad = ["base_ns"]
    if bad or data["status"] not in STATUSES or not all(type(n) is int and n > 0 for n in (*data["samples_ns"], *beside)):
        raise ModelError(f"field {(bad or ['status, samples_ns or base_ns'])[0]} does not hold what it should")
    caches = tuple(int(n) for n in target["caches"] if isinstance(n, int))
    hardware = Hardware(target["triple"], target["cpu"], target["features"], target["cores"], caches)
    fields = {k: data[k] for k in _FIELDS} | {"target": hardware, "samples_ns": tuple(data["samples_ns"]),
                                                  "base_ns": tuple(beside)}
    return Record(**fields)


class TuningLog:
    """A log file. It need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0  # bytes that `news` has seen

    def records(self) -> list[Record]:
        """All of them, in order; a LogWarning says what was skipped. Raises OSError where the file cannot be read."""
        return _parse(self.path, self.path.read_bytes())

    def news(self) -> list[Record]:
        """What has been appended since the last `news`, by anyone."""
        try:
            with self.path.open("rb") as f:
                f.seek(self._read)
                data = f.read()
        except FileNotFoundError:
            return []
        whole = data[:data.rfind(b"\n") + 1]  # someone may be writing the last line
        self._read += len(whole)
        return _parse(self.path, whole)

    def append(self, records: Iterable[Record]) -> None:
        """Adds a batch: one write, then fsync."""
        data = "".join(r.line() + "\n" for r in records).encode()
        if not data:
            return
        with self._locked() as handle:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # somebody died in the middle of a line
                data = b"\n" + data
            while data:
                data = data[os.write(handle, data):]
            os.fsync(handle)

    def replace(self, records: Iterable[Record]) -> None:
        """Writes the log anew, whole or not at all."""
        with self._locked():
            _write(self.path, records)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file open for appending, and nobody else's for as long. `replace` may have put another file in its place."""
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if _same_file(handle, self.path):
                    yield handle
                    return
            finally:
                os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _parse(path: Path, data: bytes) -> list[Record]:
    found, skipped = [], []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(parse_line(line.decode("utf-8", "replace")))
        except ModelError as e:
            skipped.append(f"line {number} ({e})")
    if skipped:
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        warnings.warn(f"{path}: skipped {', '.join(skipped[:3])}{more}; the rest is used", LogWarning, stacklevel=4)
    return found


def _write(path: Path, records: Iterable[Record]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.writelines(r.line() + "\n" for r in records)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# -- what `tilewright log` does ----------------------------------------------------------------------------------------
Group = tuple[str, tuple[str, str, frozenset[str]], int]


def groups(records: Iterable[Record]) -> dict[Group, list[Record]]:
    """The records of each task, kind of hardware and number of threads."""
    out: dict[Group, list[Record]] = {}
    for r in records:
        out.setdefault((r.task, r.target.kind, r.threads), []).append(r)
    return out


def least_own(records: Iterable[Record]) -> float:
    """The least time of the compiler's own schedule, ns, by any of a group's records; 0 where none says."""
    found = [r for r in records if r.ok and not r.of_model]
    return min([*(r.ns for r in found if not r.schedule), *(float(min(r.base_ns)) for r in found if r.base_ns)], default=0.0)


def best_of(records: Sequence[Record]) -> tuple[Record, float]:
    """The best of a group's records that went well, of which there must be one, and how many times faster than the compiler's own
    schedule it is: 0 where that is not known."""
    own = least_own(records)
    return max(((r, r.gain(own) if r.schedule else 1.0) for r in records), key=lambda x: (x[1], -x[0].ns))


def merged(logs: Iterable[Sequence[Record]]) -> list[Record]:
    """All records once, in the order of their times."""
    seen = {r.line(): r for log in logs for r in log}
    return sorted(seen.values(), key=lambda r: r.time)


def pruned(records: Sequence[Record], keep: int = 1) -> list[Record]:
    """Of each group the compiler's own schedule, the `keep` best others and the last decision: what a replay needs. Failures
    and losers go, so tuning from a pruned log may try them again."""
    kept: set[int] = set()
    for found in groups(records).values():
        own = [r for r in found if not r.schedule and not r.of_model]
        least = least_own(found)
        good = sorted((r for r in found if r.ok and r.schedule and not r.of_model), key=lambda r: (-r.gain(least), r.ns))
        decided = [r for r in found if r.of_model]
        kept |= {id(r) for r in (*good[:keep], *own[-1:], *decided[-1:])}
    wanted = {key for r in records if r.of_model and id(r) in kept for key in decisions(r).items()}
    named = {(task, json.dumps(s, sort_keys=True)) for task, s in ((t, json.loads(s)) for t, s in wanted)}
    return [r for r in records if id(r) in kept or r.ok and r.key in named]


def decisions(r: Record) -> dict[str, str]:
    """Of a model's record: task -> schedule as JSON text. What is no such pair is left out."""
    pairs = (cast("list[Json]", p) for p in r.schedule if isinstance(p, list) and len(p) == 2)
    return {task: json.dumps(steps, sort_keys=True) for task, steps in pairs if isinstance(task, str) and isinstance(steps, list)}
