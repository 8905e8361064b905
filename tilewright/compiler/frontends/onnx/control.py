"""Control flow: If picks its branch, Loop unrolls (and Scan, in scan.py). What decides must be known; if only run time knows it, the
model is cut there and the rest specialised by it (see importer.py)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ....errors import ModelError
from ....ir.graph import Value
from .attributes import resolved
from .graphs import Scope, describe, free_names, graph_scope
from .importer import Importer
from .nodes import BindTask, NodeTask, bind, handler, node_tasks
from .state import Item
from .tensors import element_type

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def tensor(imp: Importer, node: NodeProto, scope: Scope, i: int) -> Value | None:
    """Input i as a tensor, None if absent. Raises ModelError for sequences."""
    x = imp.get(scope, node.input[i]) if i < len(node.input) else None
    if isinstance(x, tuple):
        raise ModelError(f"{describe(node)}: its input {node.input[i]!r} is a sequence, not a tensor")
    return x


def body_of(node: NodeProto, scope: Scope, name: str) -> GraphProto:
    a = resolved(node, scope.attrs).get(name)
    if a is None or not a.HasField("g"):
        raise ModelError(f"{describe(node)}: the graph {name!r} is missing")
    return a.g


def body_scope(imp: Importer, g: GraphProto, scope: Scope, hint: str) -> Scope:
    """A scope for the subgraph `g` of a node in `scope`."""
    return graph_scope(g, scope.model, scope.opsets, scope, imp.new_prefix(scope.prefix + hint))


def enter(imp: Importer, g: GraphProto, inner: Scope, inputs: Sequence[Item]) -> tuple[tuple[NodeTask, ...], tuple[str, ...]]:
    """Binds the inputs of the subgraph `g` in its scope; (tasks of its nodes, keys of its outputs)."""
    if len(inputs) != len(g.input):
        raise ModelError(f"graph {g.name!r} takes {len(g.input)} inputs, but is given {len(inputs)}")
    for i, x in zip(g.input, inputs, strict=True):
        imp.env[inner.prefix + i.name] = x
    for o in g.output:  # an output may be an initializer, here or around, that is not decoded yet
        if o.name in inner.owner(o.name).baked:
            imp.get(inner, o.name)
    return node_tasks(inner), inner.keys(o.name for o in g.output)


def again(imp: Importer, inner: Scope) -> Scope:
    """The scope of a loop's body for its next iteration: values of its own, the same initializers."""
    return replace(inner, prefix=imp.new_prefix(inner.home.rsplit(".", 1)[0]))


@handler("If")
def import_if(imp: Importer, node: NodeProto, scope: Scope) -> None:
    cond = tensor(imp, node, scope, 0)
    if cond is None or cond.type.size != 1:
        raise ModelError(f"{describe(node)}: the condition must be one bool, not {cond and cond.type}")
    branch = "then_branch" if bool(imp.static_value(cond).item()) else "else_branch"
    g = body_of(node, scope, branch)
    if len(g.output) < len(node.output):
        raise ModelError(f"{describe(node)}: {branch} gives {len(g.output)} outputs, the node has {len(node.output)}")
    tasks, outputs = enter(imp, g, body_scope(imp, g, scope, "If"), ())
    pairs = tuple((scope.prefix + o, k) for o, k in zip(node.output, outputs, strict=False) if o)
    imp.push(*tasks, BindTask(pairs))


@dataclass(frozen=True, eq=False)
class LoopTask:
    """Iteration `i` of a Loop, or its end. Keys say where the state is: the condition, the carried values, and for each
    scan output its value in every iteration so far."""

    node: NodeProto
    scope: Scope
    body: GraphProto
    inner: Scope
    trip: int | None
    cond: str
    carried: tuple[str, ...]
    scans: tuple[tuple[str, ...], ...]
    i: int = 0

    def reads(self) -> frozenset[str]:
        captured = self.scope.keys(free_names(self.body))
        return frozenset((*captured, *self.carried, *(k for s in self.scans for k in s), *([self.cond] if self.cond else [])))

    def run(self, imp: Importer) -> None:
        imp.where = imp.builder.source = describe(self.node)
        imp.builder.wanted = ()
        if self._ended(imp):
            outs = [imp.env[k] for k in self.carried]
            n = len(self.carried)
            outs += [scan_output(imp, [imp.env[k] for k in s], self.body, 1 + n + j) for j, s in enumerate(self.scans)]
            bind(imp, self.node, self.scope, outs)
            return
        n = len(self.carried)
        cond = imp.env[self.cond] if self.cond else imp.builder.constant(np.array(True))
        inputs = (imp.builder.constant(np.array(self.i, np.int64)), cond, *(imp.env[k] for k in self.carried))
        tasks, outputs = enter(imp, self.body, again(imp, self.inner), inputs)
        scans = tuple((*s, k) for s, k in zip(self.scans, outputs[1 + n:], strict=True))
        imp.push(*tasks, replace(self, cond=outputs[0], carried=outputs[1:1 + n], scans=scans, i=self.i + 1))

    def _ended(self, imp: Importer) -> bool:
        if self.trip is not None and self.i >= self.trip:
            return True
        if not self.cond:
            return False
        cond = imp.env[self.cond]
        if not isinstance(cond, Value) or cond.type.size != 1:
            raise ModelError(f"{describe(self.node)}: the loop's condition must be one bool")
        return not bool(imp.static_value(cond).item())


@handler("Loop")
def import_loop(imp: Importer, node: NodeProto, scope: Scope) -> None:
    body = body_of(node, scope, "body")
    carried = len(node.input) - 2
    if carried < 0 or len(body.input) != carried + 2 or len(body.output) < carried + 1:
        raise ModelError(f"{describe(node)}: the body has {len(body.input)} inputs and {len(body.output)} outputs, which do not fit "
                         f"{carried} carried values")
    trip = tensor(imp, node, scope, 0)
    count = None if trip is None else int(imp.static_value(trip).item())
    if node.input[1]:
        imp.get(scope, node.input[1])
    for name in node.input[2:]:
        imp.get(scope, name)
    absent = f"{scope.prefix}{node.output[0] if node.output else ''}.absent"
    imp.env[absent] = None
    keys = tuple(scope.key(n) if n else absent for n in node.input[2:])
    cond = scope.key(node.input[1]) if node.input[1] else ""
    imp.push(LoopTask(node, scope, body, body_scope(imp, body, scope, "Loop"), count, cond, keys, ((),) * (len(body.output) - 1 - carried)))


def scan_output(imp: Importer, items: Sequence[Item], body: GraphProto, output: int) -> Item:
    """The values of one scan output along a new first axis. Without iterations, the body's declaration gives the type."""
    values = [x for x in items if isinstance(x, Value)]
    if len(values) != len(items):
        raise ModelError(f"graph {body.name!r}: the scan output {body.output[output].name!r} is not a tensor")
    if not values:
        t = body.output[output].type.tensor_type
        shape = tuple(d.dim_value for d in t.shape.dim)
        return imp.builder.constant(np.zeros((0, *shape), element_type(t.elem_type, f"graph {body.name!r}").numpy))
    return stack(imp, values, 0)


def stack(imp: Importer, values: Sequence[Value], axis: int) -> Value:
    """Tensors of one shape along a new axis."""
    axes = imp.builder.constant(np.array([axis], np.int64))
    rows = [imp.apply("Unsqueeze", [v, axes]) for v in values]
    return rows[0] if len(rows) == 1 else imp.apply("Concat", rows, axis=axis)


def take(imp: Importer, x: Value, axis: int, index: int) -> Value:
    """x[…, index, …] without that axis."""
    return imp.apply("Gather", [x, imp.builder.constant(np.array(index, np.int64))], axis=axis)
