"""Models whose graphs depend on a call's arguments: symbolic shapes, static inputs, several segments."""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..backends.instance import Instance
from .build import Options, build_instance
from .frontends.driver import feed, specialise
from .frontends.source import Continuation, Data, Segment, Source, assemble, pick


@dataclass(eq=False)
class Compiled:
    """One segment as native code, and what follows it."""

    source: Source
    segment: Segment
    instance: Instance
    rest: Chain | None = field(default=None)

    @property
    def direct(self) -> Instance | None:
        """The instance itself, where its inputs and outputs are the model's, one for one."""
        plain = tuple((s.name,) for s in self.source.inputs)
        results = tuple(range(len(self.segment.graph.outputs)))
        return self.instance if self.rest is None and self.segment.inputs == plain and self.segment.results == results else None

    def run(self, data: Sequence[Data]) -> list[Data]:
        named = {s.name: x for s, x in zip(self.source.inputs, data, strict=True)}
        return self.run_named(named)

    def run_named(self, named: Mapping[str, Data]) -> list[Data]:
        given = [np.ascontiguousarray(pick(named, p)).reshape(np.shape(pick(named, p))) for p in self.segment.inputs]
        outs = list(self.instance.run(given))
        if self.segment.next is None:
            return [assemble(t, outs) for t in self.segment.results]
        assert self.rest is not None
        return self.rest.run(feed(self.segment.next, given, outs))

    def instances(self) -> Iterable[Instance]:
        yield self.instance
        if self.rest is not None:
            yield from self.rest.instances()


class Chain:
    """The rest of a model behind a cut, compiled for each combination of types and static values that reaches it."""

    def __init__(self, next: Continuation, options: Options) -> None:
        self.source, self.options = next.source, options
        self.made: dict[Hashable, Compiled] = {}

    def run(self, named: Mapping[str, Data]) -> list[Data]:
        key = (self.source.static_inputs, tuple(_key(named.get(s.name), s.name in self.source.static_inputs) for s in self.source.inputs))
        found = self.made.get(key)
        if found is None:
            self.source, segment = specialise(self.source, named)
            found = compile_segment(self.source, segment, self.options)
            key = (self.source.static_inputs, tuple(_key(named.get(s.name), s.name in self.source.static_inputs) for s in self.source.inputs))
            self.made[key] = found
        return found.run_named(named)

    def instances(self) -> Iterable[Instance]:
        for c in tuple(self.made.values()):
            yield from c.instances()


def _key(x: Data, static: bool) -> Hashable:
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes() if static else None
    return None if x is None else tuple(_key(e, static) for e in x)


def compile_segment(source: Source, segment: Segment, options: Options) -> Compiled:
    instance = build_instance(segment.graph, options, segment.weights)
    return Compiled(source, segment, instance, None if segment.next is None else Chain(segment.next, options))


class Specialiser:
    """A `backends.executable.Model`: compiles a source for the arguments of a call."""

    def __init__(self, source: Source, options: Options, saved: tuple[bytes, Mapping[str, str | int | bool]] | None = None) -> None:
        self._source, self._options, self._saved = source, options, saved

    @property
    def static_inputs(self) -> frozenset[str]:
        return self._source.static_inputs

    def specialise(self, data: Sequence[Data]) -> Compiled:
        named = {s.name: x for s, x in zip(self._source.inputs, data, strict=True)}
        self._source, segment = specialise(self._source, named)
        return compile_segment(self._source, segment, self._options)

    def source(self) -> tuple[bytes, Mapping[str, str | int | bool]] | None:
        return self._saved
