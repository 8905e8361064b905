"""Functions: those a model defines, and operators that the ONNX standard defines by a body of simpler ones."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....errors import ModelError
from ....ir.graph import Value
from .attributes import resolved
from .graphs import Scope, describe, function_scope
from .loading import opset_versions
from .schemas import find_schema, function_body
from .state import Item
from .tensors import onnx_type

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto

    from .importer import Importer


def call(imp: Importer, node: NodeProto, scope: Scope, body: FunctionProto) -> tuple[Scope, tuple[tuple[str, str], ...]]:
    """A scope for the function's body, with its inputs bound; (a key of `node`'s output, the key in that scope) for each."""
    where = describe(node)
    if len(node.input) > len(body.input) or len(node.output) > len(body.output):
        raise ModelError(f"{where} has {len(node.input)} inputs and {len(node.output)} outputs, but its function takes "
                         f"{len(body.input)} and gives {len(body.output)}")
    attrs = {a.name: a for a in body.attribute_proto}
    attrs.update(resolved(node, scope.attrs))
    opsets = opset_versions(body.opset_import, where) or dict(scope.opsets)
    inner = function_scope(body, scope, {**scope.opsets, **opsets}, attrs, imp.new_prefix(scope.prefix + node.op_type))
    for k, name in enumerate(body.input):
        imp.env[inner.prefix + name] = imp.get(scope, node.input[k]) if k < len(node.input) else None
    absent = [out for k, out in enumerate(node.output) if out and body.output[k] not in inner.defined]
    if absent:
        raise ModelError(f"{where}: its function does not compute the output {absent[0]!r}")
    pairs = tuple((scope.prefix + out, inner.prefix + body.output[k]) for k, out in enumerate(node.output) if out)
    return inner, pairs


def schema_function(node: NodeProto, scope: Scope, domain: str, opset: int, inputs: Sequence[Item]) -> FunctionProto | None:
    """The body that the ONNX standard gives an operator, for inputs of these types; None where it gives none."""
    import onnx
    schema = find_schema(domain, node.op_type, opset)
    if schema is None:
        return None
    concrete = onnx.NodeProto()
    concrete.CopyFrom(node)
    del concrete.attribute[:]
    concrete.attribute.extend(_named(a, k) for k, a in resolved(node, scope.attrs).items())
    return function_body(schema, domain, opset, concrete, [type_proto(x) for x in inputs])


def _named(a: AttributeProto, name: str) -> AttributeProto:
    """A copy of an AttributeProto under another name."""
    import onnx
    out = onnx.AttributeProto()
    out.CopyFrom(a)
    out.name = name
    return out


def type_proto(x: Item) -> TypeProto:
    """ONNX's description of a value's type; an empty one for an absent optional."""
    import onnx
    if x is None:
        return onnx.TypeProto()
    if isinstance(x, Value):
        return onnx.helper.make_tensor_type_proto(onnx_type(x.type.dtype), x.type.shape)
    element = type_proto(x[0]) if x else onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    if element.HasField("tensor_type"):
        element.tensor_type.ClearField("shape")
    return onnx.helper.make_sequence_type_proto(element)
