"""AttributeProto -> plain Python values, references to a function's attributes resolved."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ....errors import ModelError, UnsupportedError
from .graphs import Scope, describe
from .tensors import sparse_to_array, to_array

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto


def resolved(node: NodeProto, attrs: Mapping[str, AttributeProto]) -> dict[str, AttributeProto]:
    """A node's attributes by name; those that refer to an attribute of the enclosing function take its value, and are
    absent where the caller left it out."""
    out: dict[str, AttributeProto] = {}
    for a in node.attribute:
        if not a.ref_attr_name:
            out[a.name] = a
        elif a.ref_attr_name in attrs:
            out[a.name] = attrs[a.ref_attr_name]
    return out


def plain(node: NodeProto, scope: Scope) -> dict[str, object]:
    """The attributes an importer sees: int, float, str, arrays and tuples of them. Graphs and types are left out."""
    out: dict[str, object] = {}
    for name, a in resolved(node, scope.attrs).items():
        value = _value(a, scope, node)
        if value is not None:
            out[name] = value
    return out


def _value(a: AttributeProto, scope: Scope, node: NodeProto) -> object:
    folder = scope.model.folder
    match a.type:
        case 1:
            return float(a.f)
        case 2:
            return int(a.i)
        case 3:
            return _text(a.s, a, node)
        case 4:
            return to_array(a.t, folder)
        case 6:
            return tuple(float(x) for x in a.floats)
        case 7:
            return tuple(int(x) for x in a.ints)
        case 8:
            return tuple(_text(s, a, node) for s in a.strings)
        case 9:
            return tuple(to_array(t, folder) for t in a.tensors)
        case 11:
            return sparse_to_array(a.sparse_tensor, folder)
        case 12:
            raise UnsupportedError(f"{describe(node)}: attribute {a.name!r} is a list of sparse tensors, which is not supported")
        case 5 | 10 | 13 | 14:
            return None
    raise ModelError(f"{describe(node)}: attribute {a.name!r} has no valid type ({a.type})")


def _text(s: bytes, a: AttributeProto, node: NodeProto) -> str:
    try:
        return s.decode()
    except UnicodeDecodeError:
        raise ModelError(f"{describe(node)}: attribute {a.name!r} is not valid UTF-8") from None
