"""The static plan of one compiled graph: which kernel runs when, on which buffers. Data only, JSON in and out.

    Plan(inputs=(("x", f32[8,64]),), outputs=(("y", f32[8,10]),), weights=(("w", f32[64,10]),), arena_bytes=0,
         calls=(KernelCall("matmul_0", (Slot("input", 0), Slot("weight", 0), Slot("output", 0)), trips=1),))
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ..errors import TilewrightError
from ..ir.types import DTYPES, TensorType

SlotKind = Literal["input", "output", "weight", "arena"]
ARENA_ALIGN = 64
MOST_THREADS = 4096
MOST_PIECES = 64  # of a thread's part of a call
MOST_MEETINGS = 1 << 26  # in one call of a plan: their numbers are told apart by differences of 28 bits
NamedType = tuple[str, TensorType]
T = TypeVar("T")


def align_up(size: int) -> int:
    """The least multiple of ARENA_ALIGN that is not below `size`, in bytes."""
    return -(-size // ARENA_ALIGN) * ARENA_ALIGN


class PlanError(TilewrightError):
    """Text that should be a plan is not one."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a buffer lies: `offset` bytes into input, output or weight number `index`, or into the arena (index 0); in a
    loop, `step` bytes further in each step."""

    kind: SlotKind
    index: int = 0
    offset: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """symbol(args…, workspace, 0, trips, ctx). `workspace` is a slot in the arena, None: the kernel needs none.
    `trips`: iterations of the parallel loops; parts of [0, trips) may run on different threads.
    `team`: on how many at most; each has a workspace of its own, thread t's `workspace_step` * t bytes after the first's.
    `cuts`: where the parts of a whole team begin, the first one's left out; (), and for fewer threads: even parts.
    `pieces`: of each part; what its thread has not begun, others may take over in pieces.
    `flops`, `bytes`: arithmetic operations, and bytes read and written at least, of one run (`compiler/work.py`); 0: not known.
    `reads`: positions of the calls whose results this one reads."""

    symbol: str
    args: tuple[Slot, ...]
    trips: int = 1
    workspace: Slot | None = None
    label: str = ""
    flops: int = 0
    bytes: int = 0
    reads: tuple[int, ...] = ()
    team: int = 1
    workspace_step: int = 0
    cuts: tuple[int, ...] = ()
    pieces: int = 1


@dataclass(frozen=True, slots=True)
class ByRows:
    """A plan whose inputs and outputs have any number of rows, their first dimension, and treat each row alone. Its `calls`
    are for blocks of `block` rows, which is what its types say; `calls` here are for one row. What is left behind the last
    whole block is filled up to one where it has `turn` rows or more; else its rows run one by one. Up to `team` threads
    take blocks, each with `arena_step` bytes of the arena; those from `scratch` on hold the block that was filled up.
    release: from so many rows on a call is long enough to let other threads have the interpreter."""

    block: int
    calls: tuple[KernelCall, ...]
    turn: int
    team: int
    arena_step: int
    scratch: int
    release: int


@dataclass(frozen=True, slots=True)
class Loop:
    """The calls at positions first .. last - 1 run `trips` times, all of them in each step."""

    first: int
    last: int
    trips: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call of the entry point does. `arena_bytes` is the size of the scratch memory (64-byte aligned).
    `phases`: positions of the calls before which the threads meet, 0 first; (): one thread runs everything.
    `loops`: in order; none in another. One with a call for several threads begins and ends with a phase, and the threads
    meet in each of its steps as often as it has phases; another one lies within a phase.
    `by_rows`: None where the types are those of every call.
    `fills`: they write the zeros that the calls expect in the arena, keep there, and never write; needed before a call unless
    the arena held zeros before its first call and was this plan's alone since."""

    inputs: tuple[NamedType, ...]
    outputs: tuple[NamedType, ...]
    weights: tuple[NamedType, ...] = ()
    arena_bytes: int = 0
    calls: tuple[KernelCall, ...] = ()
    phases: tuple[int, ...] = ()
    loops: tuple[Loop, ...] = ()
    by_rows: ByRows | None = None
    fills: tuple[KernelCall, ...] = ()

    @property
    def every_call(self) -> tuple[KernelCall, ...]:
        """Those for one row and fills included."""
        return (*self.calls, *(self.by_rows.calls if self.by_rows else ()), *self.fills)

    @property
    def times(self) -> tuple[int, ...]:
        """How often each call runs."""
        found = [1] * len(self.calls)
        for x in self.loops:
            found[x.first:x.last] = [x.trips] * (x.last - x.first)
        return tuple(found)

    def divided(self, loop: Loop) -> bool:
        """Whether several threads take part in the loop's steps."""
        return bool(self.phases) and any(c.team > 1 for c in self.calls[loop.first:loop.last])

    @property
    def meetings(self) -> int:
        """How often the threads meet in one call of the plan."""
        return len(self.phases) + sum(sum(x.first <= p < x.last for p in self.phases) * (x.trips - 1)
                                      for x in self.loops if self.divided(x))

    @property
    def threads(self) -> int:
        """How many threads can take part, the caller's included."""
        if self.by_rows:
            return self.by_rows.team
        return max((c.team for c in self.calls), default=1) if self.phases else 1

    @property
    def symbols(self) -> tuple[str, ...]:
        """The kernels' names, each once, in order of first use."""
        return tuple(dict.fromkeys(c.symbol for c in self.every_call))

    def check(self) -> None:
        """Raises PlanError where a slot points at nothing; everything that comes from a file passes here."""
        counts = {"input": len(self.inputs), "output": len(self.outputs), "weight": len(self.weights), "arena": 1}
        self._check_loops()
        if self.by_rows:
            self._check_rows(self.by_rows)
        self._check_calls(self.calls, self.times, counts)
        if self.by_rows:
            self._check_calls(self.by_rows.calls, (1,) * len(self.by_rows.calls), counts)
        self._check_calls(self.fills, (1,) * len(self.fills), counts)
        if self.fills and self.by_rows or any(s.kind != "arena" for c in self.fills for s in c.args):
            raise PlanError("fills write zeros into the arena of a plan that is not by rows, and nothing else")
        if self.phases and (self.phases[0] != 0 or sorted(set(self.phases)) != list(self.phases) or self.phases[-1] >= len(self.calls)):
            raise PlanError(f"phases {self.phases} are no positions of {len(self.calls)} calls in order")
        if self.meetings > MOST_MEETINGS:
            raise PlanError(f"threads cannot meet {self.meetings} times in one call, at most {MOST_MEETINGS} times")

    def _check_calls(self, calls: Sequence[KernelCall], times: Sequence[int], counts: Mapping[str, int]) -> None:
        """`counts`: how many there are of each kind of slot."""
        for k, c in enumerate(calls):
            for s in (*c.args, *((c.workspace,) if c.workspace else ())):
                if not 0 <= s.index < counts.get(s.kind, 0) or s.offset < 0:
                    raise PlanError(f"{c.label or 'call'}: {s} lies outside of the plan")
                last = s.offset + s.step * (times[k] - 1)
                if last < 0 or s.kind == "arena" and max(s.offset, last) > self.arena_bytes:
                    raise PlanError(f"{c.label or 'call'}: {s} lies outside of the arena of {self.arena_bytes} bytes")
            if not 1 <= c.team <= MOST_THREADS or c.workspace_step < 0 or (
                    c.workspace is not None and c.workspace.offset + (c.team - 1) * c.workspace_step > self.arena_bytes):
                raise PlanError(f"{c.label or 'call'}: a team of {c.team} threads with {c.workspace_step} bytes each is not possible")
            bounds = [0, *c.cuts, c.trips]
            if c.cuts and (len(c.cuts) != c.team - 1 or bounds != sorted(bounds)):
                raise PlanError(f"{c.label or 'call'}: {c.trips} iterations are not cut for {c.team} threads by {list(c.cuts)}")
            if not 1 <= c.pieces <= MOST_PIECES:
                raise PlanError(f"{c.label or 'call'}: parts of {c.pieces} pieces are not possible")
            if any(not 0 <= r < k for r in c.reads):
                raise PlanError(f"{c.label or 'call'}: reads the result of a call that does not come before it")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", c.symbol):
                raise PlanError(f"{c.symbol!r} is no symbol")

    def _check_loops(self) -> None:
        at = 0
        for x in self.loops:
            inside = [p for p in self.phases if x.first < p < x.last]
            if not at <= x.first < x.last <= len(self.calls) or x.trips < 1:
                raise PlanError(f"{x} is no loop over some of {len(self.calls)} calls, or overlaps with another")
            if self.divided(x):
                if x.first not in self.phases or x.last not in (*self.phases, len(self.calls)):
                    raise PlanError(f"{x} is divided among threads, but they do not meet before and after it")
            elif inside:
                raise PlanError(f"{x} is for one thread, but the threads meet before call {inside[0]}")
            at = x.last

    def _check_rows(self, r: ByRows) -> None:
        if r.block < 2 or not 1 <= r.turn <= r.block or not 1 <= r.team <= MOST_THREADS or not 0 <= r.scratch <= r.arena_step \
                or r.team * r.arena_step > self.arena_bytes or r.release < 0 or not self.inputs:
            raise PlanError(f"blocks of {r.block} rows for {r.team} threads are not possible")
        size = sum(t.bytes for _, t in (*self.inputs, *self.outputs))
        if any(t.shape[:1] != (r.block,) for _, t in (*self.inputs, *self.outputs)) or r.scratch + size > r.arena_step:
            raise PlanError(f"inputs and outputs do not fit blocks of {r.block} rows")

    def to_json(self) -> dict[str, object]:
        rows = self.by_rows
        return {"inputs": _types_json(self.inputs), "outputs": _types_json(self.outputs), "weights": _types_json(self.weights),
                "arena_bytes": self.arena_bytes, "calls": [_call_json(c) for c in self.calls],
                "phases": list(self.phases), "loops": [[x.first, x.last, x.trips] for x in self.loops],
                "by_rows": rows and {**{k: getattr(rows, k) for k in _ROWS_FIELDS}, "calls": [_call_json(c) for c in rows.calls]},
                "fills": [_call_json(c) for c in self.fills]}

    @staticmethod
    def from_json(data: object) -> Plan:
        """Inverse of `to_json`; raises PlanError for anything that is no plan."""
        try:
            plan = _plan(_get(data, "", dict))
        except (KeyError, IndexError, ValueError) as e:
            raise PlanError(f"damaged plan: {e}") from None
        plan.check()
        return plan


_ROWS_FIELDS = ("block", "turn", "team", "arena_step", "scratch", "release")


def type_json(t: TensorType) -> list[object]:
    return [t.dtype.name, list(t.shape)]


def type_from_json(data: object) -> TensorType:
    """Inverse of `type_json`; raises PlanError."""
    if not isinstance(data, list) or len(data) != 2 or data[0] not in DTYPES or not isinstance(data[1], list) \
            or not all(type(n) is int and n >= 0 for n in data[1]):
        raise PlanError(f"damaged plan: {data!r} is no tensor type")
    return TensorType(DTYPES[data[0]], tuple(data[1]))


def _types_json(items: Sequence[NamedType]) -> list[object]:
    return [[name, type_json(t)] for name, t in items]


def _slot_json(s: Slot | None) -> list[object] | None:
    return None if s is None else [s.kind, s.index, s.offset, *([s.step] if s.step else [])]


def _call_json(c: KernelCall) -> dict[str, object]:
    return {"symbol": c.symbol, "args": [_slot_json(s) for s in c.args], "trips": c.trips, "workspace": _slot_json(c.workspace),
            "label": c.label, "flops": c.flops, "bytes": c.bytes, "reads": list(c.reads), "team": c.team,
            "workspace_step": c.workspace_step, "cuts": list(c.cuts), "pieces": c.pieces}


def _get(data: object, key: str, kind: type[T]) -> T:
    """data[key] (data itself for ""), which must be a `kind`."""
    x = data if not key else data[key] if isinstance(data, dict) else None
    if type(x) is not kind:
        raise ValueError(f"{key or 'plan'} is not a {kind.__name__}")
    return x


def _list(data: object, key: str, item: Callable[[object], T]) -> tuple[T, ...]:
    return tuple(item(x) for x in _get(data, key, list))


def _named(data: object) -> NamedType:
    name, t = _get(data, "", list)
    return _get(name, "", str), type_from_json(t)


def _slot(data: object) -> Slot:
    kind, index, offset, *step = _get(data, "", list)
    if kind not in ("input", "output", "weight", "arena") or len(step) > 1:
        raise ValueError(f"{kind!r} is no kind of slot")
    return Slot(kind, _get(index, "", int), _get(offset, "", int), *(_get(n, "", int) for n in step))


def _loop(data: object) -> Loop:
    first, last, trips = (_get(n, "", int) for n in _get(data, "", list))
    return Loop(first, last, trips)


def _call(data: object) -> KernelCall:
    d = _get(data, "", dict)
    flops, size, team, step, pieces = (_get(d, k, int) if k in d else default for k, default in (
        ("flops", 0), ("bytes", 0), ("team", 1), ("workspace_step", 0), ("pieces", 1)))
    reads, cuts = (_list(d, k, lambda n: _get(n, "", int)) if k in d else () for k in ("reads", "cuts"))
    space = _slot(d["workspace"]) if d["workspace"] else None
    return KernelCall(_get(d, "symbol", str), _list(d, "args", _slot), _get(d, "trips", int), space, _get(d, "label", str), flops, size,
                      reads, team, step, cuts, pieces)


def _plan(d: dict[str, object]) -> Plan:
    rows = _get(d, "by_rows", dict) if d.get("by_rows") is not None else None
    return Plan(_list(d, "inputs", _named), _list(d, "outputs", _named), _list(d, "weights", _named), _get(d, "arena_bytes", int),
                _list(d, "calls", _call), _list(d, "phases", lambda k: _get(k, "", int)) if "phases" in d else (),
                _list(d, "loops", _loop) if "loops" in d else (),
                None if rows is None else ByRows(calls=_list(rows, "calls", _call), **{k: _get(rows, k, int) for k in _ROWS_FIELDS}),
                _list(d, "fills", _call) if "fills" in d else ())
