"""`OnnxSource`: an ONNX model, or the rest of one behind a cut, as the compiler sees it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.types import UNKNOWN_RANK, TensorSpec, TensorType, dtype_of
from ..source import Data, InputSpec, NeedsValue, OptionalSpec, Segment, SequenceSpec, ValueType, concrete_types, type_of
from . import control, scan, sequences  # noqa: F401  (they register the handlers of control flow and sequences)
from .graphs import graph_scope
from .importer import Importer
from .loading import OnnxModel, check_text, opset_versions
from .nodes import node_tasks
from .state import Feed, State
from .tensors import element_type

if TYPE_CHECKING:
    from onnx import TypeProto


@dataclass(frozen=True, eq=False)
class OnnxSource:
    """Immutable. `state` is what is left to import; `reserved` names are kept for weights and inputs."""

    name: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[InputSpec, ...]
    static_inputs: frozenset[str]
    state: State
    reserved: frozenset[str]

    def with_static(self, names: frozenset[str]) -> OnnxSource:
        return replace(self, static_inputs=self.static_inputs | names)

    def import_graph(self, types: Mapping[str, ValueType | tuple[int, ...]], values: Mapping[str, Data] | None = None) -> Segment:
        """See `Source.import_graph`."""
        values = values or {}
        missing = self.static_inputs - values.keys()
        if missing:
            raise NeedsValue(frozenset(missing), "the model")
        concrete = concrete_types(self.inputs, {**types, **{n: type_of(values[n]) for n in self.static_inputs}})

        def rest(state: State, inputs: tuple[InputSpec, ...], static: frozenset[str]) -> OnnxSource:
            return OnnxSource(self.name, inputs, self.outputs, static, state, self.reserved | {i.name for i in inputs})
        imp = Importer(self.state, self.name, concrete, {n: values[n] for n in self.static_inputs}, self.reserved, rest)
        segment = imp.run()
        if segment.next is None:
            _check_results(self.outputs, segment)
        return segment


def make_source(model: OnnxModel) -> OnnxSource:
    """The source of a whole model. Raises ModelError and UnsupportedError."""
    scope = graph_scope(model.graph, model, opset_versions(model.proto.opset_import, "the model"))
    baked = scope.initializers.names() if scope.initializers else frozenset()
    inputs = tuple(_spec(i.name, i.type, "input") for i in model.graph.input if i.name not in baked)
    outputs = tuple(_spec(o.name, o.type, "output") for o in model.graph.output)
    if not outputs:
        raise ModelError("the model has no outputs")
    env = {i.name: Feed(i.name) for i in inputs}
    state = State(node_tasks(scope), env, tuple(o.name for o in outputs), scope)
    return OnnxSource(model.name, inputs, outputs, frozenset(), state, baked | {i.name for i in inputs})


def _spec(name: str, t: TypeProto, what: str) -> InputSpec:
    kind = t.WhichOneof("value")
    where = f"the {what} {name!r}"
    if kind == "sequence_type":
        element = _spec(name, t.sequence_type.elem_type, what)
        return SequenceSpec(name, element)  # type: ignore[arg-type]
    if kind == "optional_type":
        return OptionalSpec(name, _spec(name, t.optional_type.elem_type, what))  # type: ignore[arg-type]
    if kind != "tensor_type":
        if kind is None and what == "output":
            return TensorSpec(name, UNKNOWN_RANK, np.dtype(np.void))
        raise UnsupportedError(f"{where} is {'of no type' if kind is None else 'a ' + kind.removesuffix('_type')}; tensors, sequences and "
                               "optionals are supported")
    tensor = t.tensor_type
    dtype = element_type(tensor.elem_type, where).numpy
    if not tensor.HasField("shape"):
        return TensorSpec(name, UNKNOWN_RANK, dtype)
    dims: list[int | str] = []
    for k, d in enumerate(tensor.shape.dim):
        check_text(where, d.dim_param)
        if d.WhichOneof("value") == "dim_value" and d.dim_value >= 0:  # some exporters write -1 for what is not known
            dims.append(int(d.dim_value))
        else:
            dims.append(d.dim_param or f"?{name}.{k}")
    spec = TensorSpec(name, tuple(dims), dtype)
    if what == "input" and all(isinstance(d, int) for d in dims):
        check_size(spec)
    return spec


def check_size(spec: TensorSpec) -> None:
    """Raises ModelError for a declared input that no machine can hold."""
    from ....ir.builder import MAX_TENSOR_BYTES
    t = TensorType(dtype_of(spec.dtype), tuple(int(d) for d in spec.shape))
    if t.bytes > MAX_TENSOR_BYTES:
        raise ModelError(f"the input {spec.name!r} of type {t} would take {t.bytes / 2**30:,.0f} GiB; the model is damaged")


def _check_results(outputs: tuple[InputSpec, ...], segment: Segment) -> None:
    """Declared and computed element types must agree: a caller relies on the declaration."""
    for spec, tree in zip(outputs, segment.results, strict=True):
        if isinstance(spec, TensorSpec) and isinstance(tree, int) and spec.dtype != np.dtype(np.void):
            got = segment.graph.outputs[tree].type
            if got.dtype.numpy != np.dtype(spec.dtype):
                raise ModelError(f"the output {spec.name!r} is declared as {spec.dtype}, but the model computes {got.dtype.numpy}")
            if spec.shape != UNKNOWN_RANK and len(spec.shape) != got.rank:
                raise ModelError(f"the output {spec.name!r} is declared with shape {list(spec.shape)}, "
                                 f"but the model computes {list(got.shape)}")



