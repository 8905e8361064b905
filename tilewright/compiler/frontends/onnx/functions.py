"""Functions: those a model defines, and operators that the ONNX standard defines by a body of simpler ones."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....errors import ModelError
from ....ir.graph import Value
from .attributes import resolved
from .graphs import Scope, describe, function_scope
from .loading import opset_versions
from .state import Item
from .tensors import onnx_type

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto, TypeProto

    from .importer import Importer


def expand(imp: Importer, node: NodeProto, scope: Scope, body: FunctionProto) -> None:
    """Pushes the tasks of a function's body, in a scope of its own, in place of `node`."""
    from .nodes import BindTask, node_tasks
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
    pairs = tuple((scope.prefix + out, inner.prefix + body.output[k]) for k, out in enumerate(node.output) if out)
    imp.push(*node_tasks(inner), BindTask(pairs))


def schema_function(node: NodeProto, scope: Scope, domain: str, opset: int, inputs: Sequence[Item]) -> FunctionProto | None:
    """The body that the ONNX standard gives an operator, for inputs of these types; None where it gives none."""
    import onnx
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    data = b""
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if versions:
            types = [type_proto(x).SerializeToString() for x in inputs]
            concrete = onnx.NodeProto()
            concrete.CopyFrom(node)
            del concrete.attribute[:]
            concrete.attribute.extend(_named(a, k) for k, a in resolved(node, scope.attrs).items())
            data = schema.get_context_dependent_function_with_opset_version(versions[-1], concrete.SerializeToString(), types)
    elif schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= opset]
        if versions:
            data = schema.get_function_with_opset_version(versions[-1])
    if not data:
        return None
    return _complete(onnx.FunctionProto.FromString(data), schema, domain, opset)


def _complete(f: FunctionProto, schema: object, domain: str, opset: int) -> FunctionProto:
    """Schema bodies leave out the defaults of attributes and sometimes their opsets."""
    present = {a.name for a in f.attribute_proto}
    for name, a in schema.attributes.items():  # type: ignore[attr-defined]
        if a.default_value.name and name not in present:
            f.attribute_proto.append(a.default_value)
    if not f.opset_import:
        f.opset_import.add(domain=domain, version=opset)
    return f


def _named(a: object, name: str) -> object:
    """A copy of an AttributeProto under another name."""
    import onnx
    out = onnx.AttributeProto()
    out.CopyFrom(a)  # type: ignore[arg-type]
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
