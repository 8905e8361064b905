"""`tw.check`: everything in a model that Tilewright cannot compile, at once, without shapes and without compiling."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....ir.op import importer_for
from . import control, scan, sequences  # noqa: F401  (they register the handlers of control flow and sequences)
from .graphs import graph_scope, subgraphs
from .loading import OnnxModel, domain_of, load_model, opset_versions
from .nodes import HANDLERS, old_opset_is_safe, why_unsupported
from .schemas import find_schema, function_body, needs_types
from .tensors import supported_type, type_name

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not supported. `name` is the node's (or the value's), `where` the subgraph or function around it."""

    name: str
    op: str
    domain: str
    opset: int
    why: str
    workaround: str
    where: str = ""

    def __str__(self) -> str:
        place = f" in {self.where}" if self.where else ""
        return f"{self.domain or 'ai.onnx'}.{self.op} {self.name!r}{place} (opset {self.opset}): {self.why}; {self.workaround}"


def check(model: str | os.PathLike[str] | bytes | ModelProto) -> list[Finding]:
    """Every unsupported node and element type of an ONNX model; [] means that the model can be imported, as far as can be
    said without its input shapes. Raises ModelError for a damaged model."""
    return list(_Checker(load_model(model)).findings())


class _Checker:
    def __init__(self, model: OnnxModel):
        self._model = model
        self._seen: set[tuple[str, str, str]] = set()  # functions already looked into

    def findings(self) -> Iterator[Finding]:
        p = self._model.proto
        graph_scope(p.graph, self._model, opset_versions(p.opset_import, "the model"))  # raises for a broken structure
        for v in (*p.graph.input, *p.graph.output):
            yield from self._type(v.name, v.type)
        yield from self._graph(p.graph, opset_versions(p.opset_import, "the model"), "")

    def _graph(self, g: GraphProto, opsets: Mapping[str, int], where: str) -> Iterator[Finding]:
        for t in (*g.initializer, *(s.values for s in g.sparse_initializer)):
            yield from self._element(t.name, "initializer", t.data_type, where)
        yield from self._nodes(g.node, opsets, where)

    def _nodes(self, nodes: object, opsets: Mapping[str, int], where: str) -> Iterator[Finding]:
        for n in nodes:  # type: ignore[attr-defined]
            yield from self._node(n, opsets, where)
            for g in subgraphs(n):
                yield from self._graph(g, opsets, f"{n.op_type} {_name(n)!r}")

    def _node(self, n: NodeProto, opsets: Mapping[str, int], where: str) -> Iterator[Finding]:
        domain = domain_of(n.domain)
        for a in n.attribute:
            yield from self._attribute(n, a, where)
        local = self._model.functions.get((domain, n.op_type, n.overload))
        if local is not None:
            yield from self._function(local, opsets)
            return
        if domain not in opsets:
            why = f"the model does not import the operators of {n.domain or 'ai.onnx'!r}"
            yield Finding(_name(n), n.op_type, domain, 0, why, "export the model again", where)
            return
        opset = opsets[domain]
        if (domain == "" and n.op_type in HANDLERS) or \
                (old_opset_is_safe(domain, n.op_type, opset) and importer_for(domain, n.op_type, opset) is not None):
            return
        schema = find_schema(domain, n.op_type, opset)
        if schema is not None and needs_types(schema):
            return  # its parts are only known with the input types
        body = function_body(schema, domain, opset, n, ()) if schema is not None else None
        if body is None:
            yield Finding(_name(n), n.op_type, domain, opset, why_unsupported(domain, n.op_type, opset), _workaround(domain, opset), where)
        else:
            yield from self._function(body, opsets)

    def _function(self, f: FunctionProto, opsets: Mapping[str, int]) -> Iterator[Finding]:
        key = (domain_of(f.domain), f.name, f.overload)
        if key not in self._seen:
            self._seen.add(key)
            own = opset_versions(f.opset_import, f"function {f.name!r}")
            yield from self._nodes(f.node, {**opsets, **own}, f"function {f.name!r}")

    def _attribute(self, n: NodeProto, a: AttributeProto, where: str) -> Iterator[Finding]:
        if a.HasField("t") and not a.ref_attr_name:
            yield from self._element(_name(n), n.op_type, a.t.data_type, where)

    def _type(self, name: str, t: TypeProto) -> Iterator[Finding]:
        kind = t.WhichOneof("value")
        if kind == "tensor_type":
            yield from self._element(name, "input or output", t.tensor_type.elem_type, "")
        elif kind == "sequence_type":
            yield from self._type(name, t.sequence_type.elem_type)
        elif kind == "optional_type":
            yield from self._type(name, t.optional_type.elem_type)
        elif kind is not None:
            yield Finding(name, "input or output", "", 0, f"it is a {kind.removesuffix('_type')}",
                          "use tensors, sequences or optionals at the model's border")

    def _element(self, name: str, what: str, code: int, where: str) -> Iterator[Finding]:
        if code and not supported_type(code):
            yield Finding(name, what, "", 0, f"its element type {type_name(code)} is not supported",
                          "convert it to a type of 8 bits or more (f16, bf16, f32, f64, i8 to i64, u8 to u64, bool)", where)


def _name(n: NodeProto) -> str:
    return n.name or next((o for o in n.output if o), "")


def _workaround(domain: str, opset: int) -> str:
    if domain == "" and opset < 7:
        return "convert the model with onnx.version_converter.convert_version(model, 13) or newer"
    if domain == "":
        return "export this part of the model with other operators, or run it outside"
    return f"export the model without operators of {domain!r}, or with their function bodies (ModelProto.functions)"
