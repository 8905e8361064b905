"""A source as the executable's `Model`: compiled per shapes and static values, segment after segment.

    data -> segment 0 (native) -> host step -> segment 1 (native, compiled for what came out) -> … -> results

`compile_segment` turns one Segment into an Instance whose inputs and outputs are those of the segment's graph; it is the
whole compiler. `frontends/driver.py` does the same with NumPy and is the specification.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from threading import RLock
from typing import cast

import numpy as np

from ..backends.arguments import ready
from ..backends.instance import Instance
from .frontends.driver import feed, specialise
from .frontends.source import Continuation, Data, Segment, Source, assemble, pick

CompileSegment = Callable[[Segment], Instance]
Options = Mapping[str, str | int | bool]
_MOST_FOLLOWERS = 64  # compiled forms of what follows a segment; then the oldest is dropped


class SourceModel:
    """Implements `backends.executable.Model`. `saved`: the model's bytes and compile options, for `Executable.save`."""

    def __init__(self, source: Source, compile_segment: CompileSegment, saved: Callable[[], tuple[bytes, Options]] | None = None) -> None:
        self._source, self._compile, self._saved = source, compile_segment, saved
        self.adopt: Callable[[Instance], None] = lambda _: None

    @property
    def static_inputs(self) -> frozenset[str]:
        return self._source.static_inputs

    def specialise(self, data: Sequence[Data]) -> SegmentRunner:
        given = {s.name: x for s, x in zip(self._source.inputs, data, strict=True)}
        self._source, segment = specialise(self._source, given)
        instance = self._compile(segment)
        self.adopt(instance)
        rest = None
        if segment.next is not None:
            rest = SourceModel(segment.next.source, self._compile)
            rest.adopt = self.adopt
        return SegmentRunner(self._source, segment, instance, rest)

    def source(self) -> tuple[bytes, Options] | None:
        return self._saved() if self._saved else None


class SegmentRunner:
    """Implements `backends.executable.Runnable`: one compiled segment and, made when first reached, what follows it."""

    def __init__(self, source: Source, segment: Segment, instance: Instance, rest: SourceModel | None) -> None:
        self._names = [s.name for s in source.inputs]
        self._segment, self._instance = segment, instance
        self._next = _Follower(segment.next, rest) if segment.next and rest else None
        plain = segment.inputs == tuple((n,) for n in self._names)
        whole = segment.results == tuple(range(len(segment.graph.outputs)))
        self.direct = instance if segment.next is None and plain and whole else None

    def run(self, data: Sequence[Data]) -> list[Data]:
        runner = self
        while True:  # not recursion: a loop in the model may run through a thousand segments
            given = dict(zip(runner._names, data, strict=True))
            arrays = [ready(pick(given, p)) for p in runner._segment.inputs]
            outputs = runner._instance.run(arrays)
            if runner._next is None:
                return [assemble(t, outputs) for t in runner._segment.results]
            runner, data = runner._next.reach(arrays, outputs)


class _Follower:
    """The rest of a model behind one segment, compiled for each set of shapes and static values that comes out of it."""

    def __init__(self, continuation: Continuation, model: SourceModel) -> None:
        self._continuation, self._model = continuation, model
        self._made: dict[Hashable, SegmentRunner] = {}
        self._lock = RLock()

    def reach(self, given: list[np.ndarray], outputs: list[np.ndarray]) -> tuple[SegmentRunner, list[Data]]:
        """The runner for what came out of the segment, and its arguments."""
        fed = feed(self._continuation, given, outputs)
        data = [fed[s.name] for s in self._continuation.source.inputs]
        found = self._made.get(self._key(data))
        if found is None:
            with self._lock:
                found = self._made.get(self._key(data)) or self._add(data)
        return found, data

    def _add(self, data: Sequence[Data]) -> SegmentRunner:
        made = self._model.specialise(data)
        while len(self._made) >= _MOST_FOLLOWERS:
            del self._made[next(iter(self._made))]
        self._made[self._key(data)] = made
        return made

    def _key(self, data: Sequence[Data]) -> Hashable:
        static = self._model.static_inputs
        names = (s.name for s in self._continuation.source.inputs)
        return static, tuple(_value_key(x, n in static) for n, x in zip(names, data, strict=True))

def _value_key(x: Data, static: bool) -> Hashable:
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes() if static else None
    return None if x is None else tuple(_value_key(e, static) for e in cast("Sequence[Data]", x))
