"""Scan: a task for each step along an axis of its inputs."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ....errors import ModelError, UnsupportedError
from ....ir.graph import Value
from .attributes import plain
from .control import again, body_of, body_scope, enter, scan_output, stack, take
from .graphs import Scope, describe, free_names
from .importer import Importer
from .nodes import handler

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


@dataclass(frozen=True, eq=False)
class ScanTask:
    """Iteration `i` of a Scan over `length` steps, or its end."""

    node: NodeProto
    scope: Scope
    body: GraphProto
    inner: Scope
    length: int
    scanned: tuple[str, ...]  # keys of the scan inputs
    axes: tuple[int, ...]
    backward: tuple[bool, ...]
    out_axes: tuple[int, ...]
    out_backward: tuple[bool, ...]
    targets: tuple[str, ...]  # keys of the results, "" where unused
    carried: tuple[str, ...]
    scans: tuple[tuple[str, ...], ...]
    i: int = 0

    def reads(self) -> frozenset[str]:
        return frozenset((*self.scope.keys(free_names(self.body)), *self.scanned, *self.carried, *(k for s in self.scans for k in s)))

    def run(self, imp: Importer) -> None:
        imp.where = imp.builder.source = describe(self.node)
        imp.builder.wanted = ()
        if self.i == self.length:
            self._finish(imp)
            return
        steps = []
        for key, axis, back in zip(self.scanned, self.axes, self.backward, strict=True):
            x = imp.env[key]
            assert isinstance(x, Value)
            steps.append(take(imp, x, axis, self.length - 1 - self.i if back else self.i))
        n = len(self.carried)
        tasks, outputs = enter(imp, self.body, again(imp, self.inner), (*(imp.env[k] for k in self.carried), *steps))
        scans = tuple((*s, k) for s, k in zip(self.scans, outputs[n:], strict=True))
        imp.push(*tasks, replace(self, carried=outputs[:n], scans=scans, i=self.i + 1))

    def _finish(self, imp: Importer) -> None:
        results = [imp.env[k] for k in self.carried]
        for j, s in enumerate(self.scans):
            items = [imp.env[k] for k in s]
            axis, values = self.out_axes[j], [x for x in items if isinstance(x, Value)]
            if self.out_backward[j]:
                values.reverse()
            if not values or axis == 0:
                results.append(scan_output(imp, values, self.body, len(self.carried) + j))
            else:
                results.append(stack(imp, values, axis + values[0].type.rank + 1 if axis < 0 else axis))
        imp.env.update({k: x for k, x in zip(self.targets, results, strict=False) if k})


@dataclass(frozen=True, eq=False)
class StackTask:
    """env[target] = the values of `sources` along a new first axis."""

    target: str
    sources: tuple[str, ...]

    def reads(self) -> frozenset[str]:
        return frozenset(self.sources)

    def run(self, imp: Importer) -> None:
        values = [x for x in (imp.env[k] for k in self.sources) if isinstance(x, Value)]
        imp.env[self.target] = stack(imp, values, 0)


@handler("Scan")
def import_scan(imp: Importer, node: NodeProto, scope: Scope) -> None:
    attrs, body = plain(node, scope), body_of(node, scope, "body")
    old = scope.opsets[""] < 9
    n_scan = attrs.get("num_scan_inputs")
    names = node.input[1:] if old else node.input
    if not isinstance(n_scan, int) or not 0 < n_scan <= len(names):
        raise ModelError(f"{describe(node)}: num_scan_inputs is {n_scan}, the node has {len(names)} inputs")
    state, scanned = names[:len(names) - n_scan], names[len(names) - n_scan:]
    n_out = len(body.output) - len(state)
    if len(body.input) != len(names) or n_out < 0:
        raise ModelError(f"{describe(node)}: the body has {len(body.input)} inputs and {len(body.output)} outputs for {len(names)} values")
    xs = [imp.get(scope, s) for s in scanned]
    for s in state:
        imp.get(scope, s)
    if old:
        _import_batched(imp, node, scope, body, state, scanned, attrs)
        return
    axes, lengths = [], set()
    for name, x, axis in zip(scanned, xs, _ints(attrs, "scan_input_axes", n_scan), strict=True):
        if not isinstance(x, Value) or not -x.type.rank <= axis < x.type.rank:
            raise ModelError(f"{describe(node)}: the scan input {name!r} has no axis {axis}")
        axes.append(axis % x.type.rank)
        lengths.add(x.type.shape[axis])
    if len(lengths) != 1:
        raise ModelError(f"{describe(node)}: the scan inputs differ in length: {', '.join(map(str, sorted(lengths)))}")
    imp.push(ScanTask(
        node, scope, body, body_scope(imp, body, scope, "Scan"), lengths.pop(), scope.keys(scanned), tuple(axes),
        _flags(attrs, "scan_input_directions", n_scan), _ints(attrs, "scan_output_axes", n_out),
        _flags(attrs, "scan_output_directions", n_out),
        tuple(scope.prefix + o if o else "" for o in node.output), scope.keys(state), ((),) * n_out))


def _import_batched(imp: Importer, node: NodeProto, scope: Scope, body: GraphProto, state: Sequence[str], scanned: Sequence[str],
                    attrs: dict[str, object]) -> None:
    """Opset 8: over axis 1, once for each row of the batch in axis 0. One ScanTask for each row, then the rows' results are
    stacked. Raises UnsupportedError for ragged sequences."""
    if node.input[0]:
        raise UnsupportedError(f"{describe(node)}: sequence_lens of opset 8 is not supported; convert the model to opset 9 or newer")
    values = {n: imp.get(scope, n) for n in (*state, *scanned)}
    shapes = {v.type.shape for n, v in values.items() if isinstance(v, Value) and n in scanned}
    first = next(iter(shapes), ())
    if any(not isinstance(v, Value) or v.type.rank < 1 for v in values.values()) or len(first) < 2 or len({s[:2] for s in shapes}) != 1:
        raise ModelError(f"{describe(node)}: the inputs do not share batch and sequence dimensions")
    batch, length = first[:2]
    prefix = imp.new_prefix(scope.prefix + "Scan")
    n_out = len(body.output) - len(state)
    back = _flags(attrs, "directions", len(scanned))
    inner = body_scope(imp, body, scope, "Scan")
    tasks = []
    for b in range(batch):
        for name, v in values.items():
            assert isinstance(v, Value)
            imp.env[f"{prefix}{b}/{name}"] = take(imp, v, 0, b)
        targets = tuple(f"{prefix}{b}/out/{o}" if o else "" for o in node.output)
        tasks.append(ScanTask(node, scope, body, inner, length, tuple(f"{prefix}{b}/{n}" for n in scanned), (0,) * len(scanned), back,
                              (0,) * n_out, (False,) * n_out, targets, tuple(f"{prefix}{b}/{n}" for n in state), ((),) * n_out))
    stacks = [StackTask(scope.prefix + o, tuple(f"{prefix}{b}/out/{o}" for b in range(batch))) for o in node.output if o]
    imp.push(*tasks, *stacks)


def _ints(attrs: dict[str, object], name: str, n: int) -> tuple[int, ...]:
    value = attrs.get(name, (0,) * n)
    if not isinstance(value, tuple) or len(value) != n:
        raise ModelError(f"{name} must have {n} entries")
    return value


def _flags(attrs: dict[str, object], name: str, n: int) -> tuple[bool, ...]:
    return tuple(bool(x) for x in _ints(attrs, name, n))
