"""Scan of opset 8: over axis 1, once for each row of the batch in axis 0."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....errors import ModelError, UnsupportedError
from ....ir.graph import Value
from .control import ScanTask, body_scope, flags, stack, take
from .graphs import Scope, describe
from .importer import Importer

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


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


def import_batched(imp: Importer, node: NodeProto, scope: Scope, body: GraphProto, state: Sequence[str], scanned: Sequence[str],
                   attrs: dict[str, object]) -> None:
    """One ScanTask for each row, then the rows' results are stacked. Raises UnsupportedError for ragged sequences."""
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
    back = flags(attrs, "directions", len(scanned))
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
