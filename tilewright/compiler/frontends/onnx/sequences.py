"""Constants, sequences and optionals: they exist while the model is imported, never in the graph.

A sequence is a tuple of values; an absent optional is None, a present one just its value.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.graph import Value
from .attributes import plain
from .control import stack, tensor
from .graphs import Scope, describe
from .importer import Importer
from .nodes import handler
from .state import Item

if TYPE_CHECKING:
    from onnx import NodeProto


def _sequence(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item, ...]:
    x = imp.get(scope, node.input[0]) if node.input else None
    if not isinstance(x, tuple):
        raise ModelError(f"{describe(node)}: its first input is not a sequence")
    return x


def _position(imp: Importer, node: NodeProto, scope: Scope, i: int, length: int) -> int | None:
    """The static position in input i, counted from the end when negative; None where the input is absent."""
    v = tensor(imp, node, scope, i)
    if v is None:
        return None
    p = int(imp.static_value(v).item())
    if not -length <= p < length:
        raise ModelError(f"{describe(node)}: position {p} is outside of a sequence of {length}")
    return p % length if length else 0


@handler("Constant")
def constant(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    attrs = plain(node, scope)
    if len(attrs) != 1:
        raise ModelError(f"{describe(node)} must have exactly one value, not {len(attrs)}")
    name, value = next(iter(attrs.items()))
    if name in ("value", "sparse_value"):
        array = value
    elif name in ("value_float", "value_floats"):
        array = np.array(value, np.float32)
    elif name in ("value_int", "value_ints"):
        array = np.array(value, np.int64)
    else:
        raise UnsupportedError(f"{describe(node)} holds strings, which are not supported")
    assert isinstance(array, np.ndarray)
    return (imp.constant(scope.prefix + node.output[0], array, from_node=True),)


@handler("Identity")
def identity(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    return (imp.get(scope, node.input[0]),)


@handler("SequenceEmpty")
def sequence_empty(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    return ((),)


@handler("SequenceConstruct")
def sequence_construct(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    return (tuple(imp.get(scope, i) for i in node.input),)


@handler("SequenceInsert")
def sequence_insert(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    s, x = _sequence(imp, node, scope), imp.get(scope, node.input[1])
    v = tensor(imp, node, scope, 2)
    p = len(s) if v is None else int(imp.static_value(v).item())
    if not -len(s) <= p <= len(s):
        raise ModelError(f"{describe(node)}: position {p} is outside of a sequence of {len(s)}")
    p = p + len(s) if p < 0 else p
    return ((*s[:p], x, *s[p:]),)


@handler("SequenceErase")
def sequence_erase(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    s = _sequence(imp, node, scope)
    p = _position(imp, node, scope, 1, len(s))
    p = len(s) - 1 if p is None else p
    if not s:
        raise ModelError(f"{describe(node)}: nothing to erase from an empty sequence")
    return ((*s[:p], *s[p + 1:]),)


@handler("SequenceAt")
def sequence_at(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    s = _sequence(imp, node, scope)
    p = _position(imp, node, scope, 1, len(s))
    if p is None:
        raise ModelError(f"{describe(node)}: its position is missing")
    return (s[p],)


@handler("SequenceLength")
def sequence_length(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    return (imp.builder.constant(np.array(len(_sequence(imp, node, scope)), np.int64)),)


@handler("ConcatFromSequence")
def concat_from_sequence(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    attrs = plain(node, scope)
    values = [x for x in _sequence(imp, node, scope) if isinstance(x, Value)]
    axis = attrs.get("axis")
    if not isinstance(axis, int) or not values:
        raise ModelError(f"{describe(node)}: {'it has no axis' if values else 'its sequence is empty'}")
    if attrs.get("new_axis", 0):
        return (stack(imp, values, axis + values[0].type.rank + 1 if axis < 0 else axis),)
    return (values[0] if len(values) == 1 else imp.apply("Concat", values, axis=axis),)


@handler("SplitToSequence")
def split_to_sequence(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    attrs, x, sizes = plain(node, scope), tensor(imp, node, scope, 0), tensor(imp, node, scope, 1)
    axis = attrs.get("axis", 0)
    if x is None or not isinstance(axis, int) or not -x.type.rank <= axis < x.type.rank:
        raise ModelError(f"{describe(node)}: axis {axis} does not fit the input {x}")
    axis, extent = axis % x.type.rank, x.type.shape[axis]
    if sizes is None:
        parts, squeeze = [1] * extent, not attrs.get("keepdims", 1)
    else:
        value, squeeze = imp.static_value(sizes), False
        step = int(value.item()) if value.ndim == 0 else 0
        if value.ndim == 0 and step < 1:
            raise ModelError(f"{describe(node)}: parts of {step} elements")
        parts = [int(p) for p in value] if value.ndim else [min(step, extent - p) for p in range(0, extent, step)]
    if sum(parts) != extent or min(parts, default=0) < 0:
        raise ModelError(f"{describe(node)}: parts {parts} do not add up to the {extent} of axis {axis}")
    return (tuple(_part(imp, x, axis, sum(parts[:k]), n, squeeze) for k, n in enumerate(parts)),)


def _part(imp: Importer, x: Value, axis: int, start: int, size: int, squeeze: bool) -> Value:
    def ints(*values: int) -> Value:
        return imp.builder.constant(np.array(values, np.int64))
    part = imp.apply("Slice", [x, ints(start), ints(start + size), ints(axis)])
    return imp.apply("Squeeze", [part, ints(axis)]) if squeeze else part


@handler("Optional")
def optional(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    return (imp.get(scope, node.input[0]) if node.input else None,)


@handler("OptionalHasElement")
def optional_has_element(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    x = imp.get(scope, node.input[0]) if node.input else None
    return (imp.builder.constant(np.array(x is not None)),)


@handler("OptionalGetElement")
def optional_get_element(imp: Importer, node: NodeProto, scope: Scope) -> tuple[Item]:
    x = imp.get(scope, node.input[0])
    if x is None:
        raise ModelError(f"{describe(node)}: the optional is empty")
    return (x,)
