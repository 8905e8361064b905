"""What the ONNX standard says of its operators (`onnx.defs`), typed: onnx's own stubs leave most of it out."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto


class _Attribute(Protocol):
    default_value: AttributeProto


class Schema(Protocol):
    """The part of onnx.defs.OpSchema used here."""

    since_version: int
    attributes: Mapping[str, _Attribute]
    has_function: bool
    has_context_dependent_function: bool
    function_opset_versions: Sequence[int]
    context_dependent_function_opset_versions: Sequence[int]

    def get_function_with_opset_version(self, version: int) -> bytes: ...
    def get_context_dependent_function_with_opset_version(self, version: int, node: bytes, types: Sequence[bytes]) -> bytes: ...


def find_schema(domain: str, op_type: str, opset: int) -> Schema | None:
    """The definition of an operator that is valid at `opset`, None where there is none."""
    import onnx
    try:
        return cast(Schema, onnx.defs.get_schema(op_type, opset, domain))
    except onnx.defs.SchemaError:
        return None


def needs_types(schema: Schema) -> bool:
    """Whether the operator's body depends on its input types and attributes."""
    return schema.has_context_dependent_function


def function_body(schema: Schema, domain: str, opset: int, node: NodeProto, types: Sequence[TypeProto]) -> FunctionProto | None:
    """The operator's definition by simpler ones, defaults of attributes and opsets filled in; None where it has none."""
    import onnx
    data = b""
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if versions:
            data = schema.get_context_dependent_function_with_opset_version(
                versions[-1], node.SerializeToString(), [t.SerializeToString() for t in types])
    elif schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= opset]
        if versions:
            data = schema.get_function_with_opset_version(versions[-1])
    if not data:
        return None
    f = onnx.FunctionProto.FromString(data)
    present = {a.name for a in f.attribute_proto}
    f.attribute_proto.extend(a.default_value for name, a in schema.attributes.items() if a.default_value.name and name not in present)
    if not f.opset_import:
        f.opset_import.add(domain=domain, version=opset)
    return f
