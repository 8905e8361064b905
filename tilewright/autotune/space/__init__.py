"""The search space of a task: sketches of loop nests for its program, each with a few open decisions.

    space = Space(task)
    d = space.mutate(space.sample(rng), rng)
    scheduled = space.scheduled(d)            # ScheduleError: infeasible
    space.from_json(space.to_json(d)) == d    # what logs store

Sketches come from rules about the computation (contraction.py, rows.py, composed.py), never from its model. The first sketch is
the one that the compiler's own choice belongs to, so that `default()` is exactly the untuned schedule.
"""
from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol

from ...backends.target import Target
from ...compiler.schedule.default import default_schedule
from ...errors import ScheduleError
from ...ir.loops import Scheduled
from ...ir.program import Program
from .composed import composed_sketches
from .contraction import contraction_sketches
from .knobs import Decisions, Json, Knob, Sketch, Value
from .rows import rows_sketch

__all__ = ["Decisions", "Knob", "Sketch", "Space", "Subject"]

BESIDE = 0.1   # share of samples that rows get beside a sketch that was made for the program


class Subject(Protocol):
    """What a space needs to know of a task."""

    @property
    def program(self) -> Program: ...
    @property
    def packable(self) -> frozenset[str]: ...
    @property
    def target(self) -> Target: ...
    @property
    def threads(self) -> int: ...


class DefaultSketch(Sketch):
    """The compiler's own choice, for programs whose schedule no other sketch describes."""

    def __init__(self, p: Program, s: Scheduled) -> None:
        super().__init__("default", ())
        self.program, self._scheduled = p, s

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        return self._scheduled


class Space:
    """All schedules of a task that search may try. Same draws from the same random state."""

    def __init__(self, task: Subject) -> None:
        p, target = task.program, task.target
        own = default_schedule(p, target, task.packable)
        composed = composed_sketches(p, target, task.packable)
        found: list[Sketch] = [*composed, *contraction_sketches(p, target, task.packable, task.threads)]
        # as maps and reductions, programs that hold whole products are many times slower
        if not composed and (rows := rows_sketch(p, target, BESIDE if found else 1.0)) is not None:
            found.append(rows)
        first = next((s for s in found if _equal(s, own)), None)
        if first is None:
            first = DefaultSketch(p, own)
            first.weight = 0.0
        self.sketches: tuple[Sketch, ...] = (first, *(s for s in found if s is not first))
        self._by_name = {s.name: s for s in self.sketches}
        self._drawn = [s for s in self.sketches if s.weight > 0 and s.open]

    def __getitem__(self, name: str) -> Sketch:
        """The sketch called `name`. Raises ScheduleError."""
        if name not in self._by_name:
            raise ScheduleError(f"no sketch {name!r} for this program; it has {', '.join(self._by_name)}")
        return self._by_name[name]

    @property
    def size(self) -> int:
        """Points of all sketches."""
        return sum(s.size for s in self.sketches)

    def default(self) -> Decisions:
        """The untuned schedule's decisions."""
        return Decisions(self.sketches[0].name, self.sketches[0].default)

    def sample(self, rng: Random) -> Decisions:
        """A random point; the default where nothing is open."""
        if not self._drawn:
            return self.default()
        s = rng.choices(self._drawn, [x.weight for x in self._drawn])[0]
        return Decisions(s.name, s.sample(rng))

    def mutate(self, d: Decisions, rng: Random) -> Decisions:
        """A neighbour of `d`, in the same sketch."""
        s = self[d.sketch]
        return Decisions(s.name, s.mutate(d.values, rng)) if s.open else self.sample(rng)

    def cross(self, a: Decisions, b: Decisions, rng: Random) -> Decisions:
        """A mixture of two points; of different sketches: one of them."""
        if a.sketch != b.sketch:
            return rng.choice((a, b))
        return Decisions(a.sketch, self[a.sketch].cross(a.values, b.values, rng))

    def scheduled(self, d: Decisions) -> Scheduled:
        """The schedule of `d`, checked. Raises ScheduleError where it is infeasible."""
        return self[d.sketch].scheduled(d.values)

    def to_json(self, d: Decisions) -> list[list[str | dict[str, Json]]]:
        """[[sketch, {decision: value, …}]]: plain values by name, without reference to this program's object."""
        return self[d.sketch].to_json(d.values)

    def from_json(self, data: object) -> Decisions:
        """Inverse of `to_json`. Raises ScheduleError for anything that this space does not hold."""
        name, named = _parts(data)
        return Decisions(name, self[name].from_json(named))

    def repair(self, data: object) -> Decisions | None:
        """The nearest point to a record of another target or version; None where its sketch is unknown here."""
        try:
            name, named = _parts(data)
        except ScheduleError:
            return None
        return Decisions(name, self._by_name[name].repair(named)) if name in self._by_name else None


def _parts(data: object) -> tuple[str, dict[object, object]]:
    if not isinstance(data, Sequence) or len(data) != 1 or not isinstance(data[0], Sequence) or len(data[0]) != 2 \
            or not isinstance(data[0][0], str) or not isinstance(data[0][1], dict):
        raise ScheduleError(f"a schedule is [[sketch, {{decision: value}}]], not {data!r:.80}")
    return data[0][0], data[0][1]


def _equal(sketch: Sketch, own: Scheduled) -> bool:
    """Whether the sketch's default is the compiler's schedule."""
    try:
        return schedule_key(sketch.scheduled(sketch.default)) == schedule_key(own)
    except ScheduleError:
        return False


def schedule_key(s: Scheduled) -> str:
    """Equal for equal schedules of programs with equal text."""
    return f"{s.program}|{s.packs}|" + "|".join(
        f"{st.loops}{st.relations}{st.shared}{st.tensorize}{st.prefetch}{st.inside or ''}" for st in s.stages)
