"""Models whose graphs depend on a call's arguments: symbolic shapes, static inputs, several segments.

    data -> segment 0 (native) -> host step -> segment 1 (native, compiled for what came out) -> … -> results

Each segment is compiled once for each combination of types and static values that reaches it. `frontends/driver.py` does
the same with NumPy and is the specification.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from threading import RLock

import numpy as np

from ..backends.arguments import ready
from ..backends.instance import Instance
from ..backends.mapped import MappedFile
from .build import Options, build_instance
from .frontends.driver import feed, specialise
from .frontends.source import Continuation, Data, Segment, Source, assemble, pick

_MOST_FOLLOWERS = 64  # compiled forms of what follows a segment; then the oldest is dropped
Saved = tuple[bytes | MappedFile, Mapping[str, str | int | bool]]


class Specialiser:
    """A `backends.executable.Model`: compiles a source for the arguments of a call. `saved`: the model's bytes and the
    options of its compilation, for `Executable.save`."""

    def __init__(self, source: Source, options: Options, saved: Saved | None = None) -> None:
        self._source, self._options, self._saved = source, options, saved
        self.adopt: Callable[[Instance], None] = lambda _: None

    @property
    def static_inputs(self) -> frozenset[str]:
        return self._source.static_inputs

    def specialise(self, data: Sequence[Data]) -> Compiled:
        named = {s.name: x for s, x in zip(self._source.inputs, data, strict=True)}
        self._source, segment = specialise(self._source, named)
        return compile_segment(self._source, segment, self._options, self.adopt)

    def source(self) -> Saved | None:
        return self._saved


def compile_segment(source: Source, segment: Segment, options: Options, adopt: Callable[[Instance], None] = lambda _: None) -> Compiled:
    """`adopt` is called with the segment's Instance, and later with those of what follows it."""
    instance = build_instance(segment.graph, options, segment.weights)
    adopt(instance)
    if segment.next is None:
        return Compiled(source, segment, instance, None)
    rest = Specialiser(segment.next.source, options)
    rest.adopt = adopt
    return Compiled(source, segment, instance, _Follower(segment.next, rest))


class Compiled:
    """A `backends.executable.Runnable`: one segment as native code, and what follows it."""

    def __init__(self, source: Source, segment: Segment, instance: Instance, rest: _Follower | None) -> None:
        self._names = [s.name for s in source.inputs]
        self._segment, self._instance, self._rest = segment, instance, rest
        plain = segment.inputs == tuple((n,) for n in self._names)
        whole = segment.results == tuple(range(len(segment.graph.outputs)))
        self.direct = instance if rest is None and plain and whole else None

    def run(self, data: Sequence[Data]) -> list[Data]:
        at = self
        while True:  # not recursion: a loop in the model may run through a thousand segments
            given = dict(zip(at._names, data, strict=True))
            arrays = [ready(pick(given, p)) for p in at._segment.inputs]
            outputs = at._instance.run(arrays)
            if at._rest is None:
                return [assemble(t, outputs) for t in at._segment.results]
            at, data = at._rest.reach(arrays, outputs)


class _Follower:
    """The rest of a model behind one segment."""

    def __init__(self, continuation: Continuation, model: Specialiser) -> None:
        self._continuation, self._model = continuation, model
        self._made: dict[Hashable, Compiled] = {}
        self._lock = RLock()

    def reach(self, given: list[np.ndarray], outputs: list[np.ndarray]) -> tuple[Compiled, list[Data]]:
        """What was compiled for what came out of the segment, and its arguments."""
        fed = feed(self._continuation, given, outputs)
        data = [fed[s.name] for s in self._continuation.source.inputs]
        found = self._made.get(self._key(data))
        if found is None:
            with self._lock:
                found = self._made.get(self._key(data)) or self._add(data)
        return found, data

    def _add(self, data: Sequence[Data]) -> Compiled:
        made = self._model.specialise(data)
        while len(self._made) >= _MOST_FOLLOWERS:
            del self._made[next(iter(self._made))]
        self._made[self._key(data)] = made  # the key is made anew: static inputs may have been found
        return made

    def _key(self, data: Sequence[Data]) -> Hashable:
        static = self._model.static_inputs
        names = (s.name for s in self._continuation.source.inputs)
        return static, tuple(_value_key(x, n in static) for n, x in zip(names, data, strict=True))


def _value_key(x: Data, static: bool) -> Hashable:
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes() if static else None
    return None if x is None else tuple(_value_key(e, static) for e in x)
