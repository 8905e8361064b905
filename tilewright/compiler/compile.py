"""The whole flow on one screen: model -> source -> graph -> passes -> groups -> programs -> schedules -> code.

    source     frontends.load      any model, its inputs possibly symbolic
    segment    import_graph        a graph of concrete shapes (build.py from here on)
    graph      pipeline.run        passes: fold, recognise, layouts
    prepared   split_preparation   what follows from weights alone is computed at load
    partition  fuse                which nodes become one kernel
    views      plan_views          which tensors are parts of others
    kernels    lower               one tensor program each
    scheduled  default_schedule    loops, tiles, microkernels
    code       emit_kernel, build  LLVM IR, objects (cached)
    instance   Instance            plan + code + prepared weights; Executable is its public face
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..backends.arguments import tensor
from ..backends.executable import Executable
from ..backends.instance import Instance
from ..backends.mapped import MappedFile, map_file
from ..backends.tables import TableExecutable
from ..backends.target import Target
from ..errors import InputError, TilewrightError
from ..ir.graph import Graph
from ..ir.types import TensorSpec, TensorType
from . import frontends
from .build import Options, build_instance, make_options
from .frontends.rows import BLOCK, RowSource
from .frontends.source import NeedsValue, Source, ValueType, type_of
from .model import Specialiser, compile_segment
from .passes.fold_thresholds import fold_thresholds
from .rows import build_by_rows
from .schedule.source import ScheduleSource

Inputs = Mapping[str, object] | Sequence[object] | np.ndarray


def compile(model: object, *, inputs: Inputs | None = None, target: str | Target = "native", threads: int | None = None,
            precision: str = "f32", schedules: ScheduleSource | None = None, cache: bool = True,
            strict: bool = False, method: str = "", iterations: tuple[int, int] | None = None) -> Executable:
    """`tilewright.compile` without the tuner: `schedules` is who chooses them (default: the heuristic), not the path of a log.
    Every other argument is described there.

    Raises ModelError, UnsupportedError, InputError, TargetError.
    """
    options = make_options(target, threads, precision, schedules, cache, strict)
    if isinstance(model, Graph):
        return _executable_of_graph(model, options)
    source = frontends.load(model, _examples(inputs), method, iterations)
    if isinstance(source, RowSource):
        return _executable_by_rows(source, options)
    types = _types(source, inputs)
    name = source.name or "model"
    if _concrete(source, types):
        try:
            segment = source.import_graph(types)
            made = compile_segment(source, segment, options) if segment.next is None else None
            if made is not None and made.direct is not None:
                ins, outs = _specs(source.inputs, made.direct, True), _specs(source.outputs, made.direct, False)
                return Executable(ins, outs, made.direct, options.target, name, _weight_types(segment.graph, segment.weights))
        except NeedsValue:
            pass  # compiled at the first call, for the values it brings
    saved = _saved(model, options)
    return Executable(source.inputs, source.outputs, Specialiser(source, options, saved), options.target, name)


def first_graph(model: object, inputs: Inputs | None = None) -> Graph:
    """The graph that `compile` would compile now: the whole model, or what comes before its first host step. Raises
    InputError where a shape or a value that the graph depends on is not known yet, and as `compile`."""
    if isinstance(model, Graph):
        return model
    source = frontends.load(model, _examples(inputs))
    if isinstance(source, RowSource):
        return source.graph(BLOCK).graph
    types = _types(source, inputs)
    if not _concrete(source, types):
        free = [f"{s}" for s in source.inputs if s.name not in types and not (isinstance(s, TensorSpec)
                                                                            and all(isinstance(d, int) for d in s.shape))]
        raise InputError(f"the shapes of the inputs must be known here; give {', '.join(free or source.static_inputs)} in `inputs=` "
                         "(--shape NAME=DIMS on the command line)")
    try:
        return source.import_graph(types).graph
    except NeedsValue as e:
        raise InputError(f"the model's graph depends on values that only a call brings ({e}); it cannot be taken apart before") from None


def _executable_of_graph(graph: Graph, options: Options) -> Executable:
    instance = build_instance(graph, options)
    specs = [[TensorSpec(v.name, v.type.shape, v.type.dtype.numpy) for v in vs] for vs in (graph.inputs, graph.outputs)]
    return Executable(specs[0], specs[1], instance, options.target, graph.name, _weight_types(graph, {}))


def _executable_by_rows(source: RowSource, options: Options) -> Executable:
    segment = source.graph(BLOCK)
    block, one = fold_thresholds(segment.graph, frozen=True), fold_thresholds(source.graph(1).graph, frozen=True)
    names = {k: v for k, v in segment.weights.items() if v in block.constants}
    instance = build_by_rows(block, one, options, names)
    weights, folded = _weight_types(block, names), frozenset(segment.weights) - frozenset(names)
    if source.boundary is not None:
        return TableExecutable(source.boundary, source.inputs, source.outputs, instance, options.target, source.name, weights, folded)
    return Executable(source.inputs, source.outputs, instance, options.target, source.name, weights, folded)


def _weight_types(graph: Graph, names: Mapping[str, str]) -> dict[str, TensorType]:
    back = {v: k for k, v in names.items()}
    return {back.get(k, k): c.value.type for k, c in graph.constants.items() if c.updatable}


def _examples(inputs: Inputs | None) -> Sequence[object] | None:
    """A single array is the only example."""
    if inputs is None or isinstance(inputs, Mapping):
        return None
    return list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]


def _types(source: Source, inputs: Inputs | None) -> dict[str, ValueType | tuple[int, ...]]:
    """Types of the inputs as far as the caller gave them."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        inputs = _examples(inputs) or []
        if len(inputs) != len(source.inputs):
            raise InputError(f"{len(inputs)} example inputs were given, the model has {len(source.inputs)}")
        inputs = {s.name: x for s, x in zip(source.inputs, inputs, strict=True)}
    out: dict[str, ValueType | tuple[int, ...]] = {}
    for name, x in inputs.items():
        if isinstance(x, tuple) and all(isinstance(n, int) for n in x):
            out[name] = x
        else:
            spec = next((s for s in source.inputs if s.name == name), None)
            out[name] = type_of(tensor(spec, x) if isinstance(spec, TensorSpec) else x)  # type: ignore[arg-type]
    return out


def _concrete(source: Source, types: Mapping[str, object]) -> bool:
    return not source.static_inputs and all(
        s.name in types or (isinstance(s, TensorSpec) and all(isinstance(d, int) for d in s.shape)) for s in source.inputs)


def _specs(specs: Sequence[object], instance: Instance, ins: bool) -> list[TensorSpec]:
    """The model's names with the instance's concrete shapes."""
    types = instance.plan.inputs if ins else instance.plan.outputs
    return [TensorSpec(s.name, t.shape, t.dtype.numpy) for s, (_, t) in zip(specs, types, strict=True)]  # type: ignore[attr-defined]


def _saved(model: object, options: Options) -> tuple[bytes | MappedFile, dict[str, str | int | bool]] | None:
    """The model itself as bytes, for saving what is compiled anew on load; None where it has no such form."""
    settings: dict[str, str | int | bool] = {"target": options.target.name, "threads": options.threads, "precision": options.precision,
                                                 "strict": options.strict}
    if isinstance(model, bytes):
        return model, settings
    if isinstance(model, (str, os.PathLike)):
        try:
            return map_file(Path(model)), settings
        except OSError as e:
            raise TilewrightError(f"{model} cannot be read: {e.strerror or e}") from None
    serialise = getattr(model, "SerializeToString", None)
    return (serialise(), settings) if serialise is not None else None
