"""Decisions about one tensor program, and how search moves between them.

A *sketch* is a family of loop nests for a program with a few open decisions, its *knobs*. Each knob has a finite list of
options, so a point of the space is a tuple of values, one a knob, and any two points of one sketch can be crossed.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ...errors import ScheduleError
from ...ir.loops import Scheduled

Value = int | str | tuple[int, ...]
Json = int | str | list[int]
TRIES = 50       # draws before a default stands in for an infeasible one
NEAR = 0.7       # share of mutations of ordered knobs that go to a neighbouring option


@dataclass(frozen=True, slots=True)
class Knob:
    """One open decision. `ordered`: neighbours among the options are similar. `later`: it was the compiler's before it was open, so that
    records which lack it mean the default."""

    name: str
    options: tuple[Value, ...]
    default: Value
    ordered: bool = False
    later: bool = False

    def __post_init__(self) -> None:
        assert self.default in self.options and len(set(self.options)) == len(self.options), f"{self.name}: {self.options}"

    def other(self, value: Value, rng: Random) -> Value:
        """Another option than `value`: where there is an order, mostly one of the two next to it."""
        at, n = self.options.index(value), len(self.options)
        if self.ordered and rng.random() < NEAR:
            return self.options[rng.choice([k for k in (at - 1, at + 1) if 0 <= k < n])]
        return self.options[rng.choice([k for k in range(n) if k != at])]


def knob(name: str, options: Sequence[Value], default: Value, ordered: bool = False, later: bool = False) -> Knob:
    """A Knob whose options include the default."""
    found = list(dict.fromkeys(options))
    if default not in found:
        found.append(default)
        if ordered:
            found.sort()  # type: ignore[type-var]
    return Knob(name, tuple(found), default, ordered, later)


@dataclass(frozen=True, slots=True)
class Decisions:
    """A point of a space: the sketch's name and the value of each of its knobs, in order."""

    sketch: str
    values: tuple[Value, ...]


class Sketch:
    """A family of schedules of one program. `weight`: its share of random samples, beside those of the other sketches."""

    def __init__(self, name: str, knobs: Sequence[Knob], weight: float = 1.0) -> None:
        self.name, self.weight = name, weight
        self.knobs = tuple(knobs)
        self.open = tuple(k for k, x in enumerate(self.knobs) if len(x.options) > 1)
        self.default: tuple[Value, ...] = tuple(k.default for k in self.knobs)

    def feasible(self, values: tuple[Value, ...]) -> bool:
        """A quick check that leaves few infeasible points; `scheduled` has the last word."""
        return True

    def canonical(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """The point with knobs that have no effect at their defaults: equal schedules have equal points, as far as is seen."""
        return values

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        """The schedule. Raises ScheduleError where the decisions do not fit together."""
        raise NotImplementedError(self.name)

    @property
    def size(self) -> int:
        """How many points there are, feasible or not."""
        n = 1
        for k in self.knobs:
            n *= len(k.options)
        return n

    def sample(self, rng: Random) -> tuple[Value, ...]:
        for _ in range(TRIES):
            values = tuple(rng.choice(k.options) for k in self.knobs)
            if self.feasible(values):
                return self.canonical(values)
        return self.mutate(self.default, rng)

    def mutate(self, values: tuple[Value, ...], rng: Random) -> tuple[Value, ...]:
        """One or two decisions changed (sometimes three); the default where nothing else is feasible."""
        for _ in range(TRIES if self.open else 0):
            new = list(values)
            for k in rng.sample(self.open, min(len(self.open), rng.choice((1, 1, 1, 2, 2, 3)))):
                new[k] = self.knobs[k].other(new[k], rng)
            made = self.canonical(tuple(new))
            if made != values and self.feasible(made):
                return made
        return self.default

    def cross(self, a: tuple[Value, ...], b: tuple[Value, ...], rng: Random) -> tuple[Value, ...]:
        """Each decision from either parent; `a` where no mixture is feasible."""
        for _ in range(TRIES // 5):
            made = self.canonical(tuple(rng.choice(pair) for pair in zip(a, b, strict=True)))
            if self.feasible(made):
                return made
        return a

    def to_json(self, values: tuple[Value, ...]) -> list[list[str | dict[str, Json]]]:
        """[[sketch, {knob: value}]]; tuples are lists."""
        named: dict[str, Json] = {k.name: list(v) if isinstance(v, tuple) else v for k, v in zip(self.knobs, values, strict=True)}
        return [[self.name, named]]

    def from_json(self, named: dict[object, object]) -> tuple[Value, ...]:
        """Inverse of `to_json`. Raises ScheduleError for knobs or values that this sketch does not have."""
        values = tuple(self._parsed(k, named) for k in self.knobs)
        if extra := [str(n) for n in named if all(n != k.name for k in self.knobs)]:
            raise ScheduleError(f"sketch {self.name} has no decision {', '.join(extra)}")
        return self.canonical(values) if any(k.name not in named for k in self.knobs) else values

    def _parsed(self, k: Knob, named: dict[object, object]) -> Value:
        if k.name not in named and k.later:
            return k.default
        if k.name not in named:
            raise ScheduleError(f"sketch {self.name}: decision {k.name} is missing")
        raw = named[k.name]
        value = tuple(raw) if isinstance(raw, list) else raw
        found = next((o for o in k.options if o == value and isinstance(o, type(value))), None)
        if found is None:
            raise ScheduleError(f"sketch {self.name}: {k.name} = {raw!r:.60} is not among its {len(k.options)} options")
        return found

    def repair(self, named: dict[object, object]) -> tuple[Value, ...]:
        """The nearest point to decisions made for another target or by another version: options nearest to the numbers given,
        defaults where there is none."""
        return self.canonical(tuple(_nearest(k, named.get(k.name)) for k in self.knobs))


def _nearest(k: Knob, raw: object) -> Value:
    value = tuple(raw) if isinstance(raw, list) else raw
    if value in k.options:
        return next(o for o in k.options if o == value)
    if isinstance(value, int) and all(isinstance(o, int) for o in k.options):
        return min(k.options, key=lambda o: abs(int(o) - value))  # type: ignore[arg-type]
    if isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        same = [o for o in k.options if isinstance(o, tuple) and len(o) == len(value)]
        return min(same, key=lambda o: sum(abs(a - b) for a, b in zip(o, value, strict=True)), default=k.default)
    return k.default
