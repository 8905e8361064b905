"""Tasks for nodes: an importer of ir/ops, a handler of control flow or sequences, or the body of a function."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....errors import ModelError, ShapeError, TilewrightError, UnsupportedError
from ....ir.graph import Value
from ....ir.op import OnnxImporter, OnnxNode, importer_for
from . import functions
from .attributes import plain
from .graphs import Scope, describe, full_name, reads_of
from .importer import Importer
from .loading import domain_of
from .schemas import find_schema
from .state import Item

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

Handler = Callable[[Importer, "NodeProto", Scope], "Sequence[Item] | None"]
HANDLERS: dict[str, Handler] = {}  # ops of ONNX's own domain that are more than tensor operators; filled by control.py, sequences.py


def handler(op_type: str) -> Callable[[Handler], Handler]:
    """Registers how the importer treats `op_type`: the function returns the outputs, or None if it pushed tasks that
    will bind them."""
    def add(f: Handler) -> Handler:
        HANDLERS[op_type] = f
        return f
    return add


@dataclass(frozen=True, eq=False)
class NodeTask:
    """Imports one node."""

    node: NodeProto
    scope: Scope

    def reads(self) -> frozenset[str]:
        return frozenset(self.scope.keys(reads_of(self.node)))

    def run(self, imp: Importer) -> None:
        n = self.node
        imp.where = imp.builder.source = describe(n)
        imp.builder.wanted = tuple(self.scope.prefix + o if o else "" for o in n.output)
        try:
            outputs = import_node(imp, n, self.scope)
        except (ShapeError, UnsupportedError, ModelError) as e:
            raise _located(e, n) from e
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as e:
            _blame_node(imp, n, self.scope)
            raise e
        if outputs is not None:
            bind(imp, n, self.scope, outputs)


@dataclass(frozen=True, eq=False)
class BindTask:
    """Gives values a second name: env[target] = env[source]."""

    pairs: tuple[tuple[str, str], ...]

    def reads(self) -> frozenset[str]:
        return frozenset(s for _, s in self.pairs)

    def run(self, imp: Importer) -> None:
        for target, source in self.pairs:
            imp.env[target] = imp.env[source]


def bind(imp: Importer, node: NodeProto, scope: Scope, outputs: Sequence[Item]) -> None:
    """Names a node's outputs."""
    wanted = list(node.output)
    while wanted and not wanted[-1]:
        wanted.pop()
    if len(outputs) < len(wanted):
        raise UnsupportedError(f"{describe(node)}: only the first {len(outputs)} of its {len(wanted)} outputs are supported")
    for name, x in zip(wanted, outputs, strict=False):
        if name:
            imp.env[scope.prefix + name] = x


def import_node(imp: Importer, node: NodeProto, scope: Scope) -> Sequence[Item] | None:
    """The outputs of a node, or None when tasks were pushed that will name them."""
    domain = domain_of(node.domain)
    local = scope.model.functions.get((domain, node.op_type, node.overload))
    if local is not None:
        return _expand(imp, node, scope, local)
    if domain not in scope.opsets:
        raise ModelError(f"the model does not import the operators of {node.domain or 'ai.onnx'!r}")
    opset = scope.opsets[domain]
    inputs = [imp.get(scope, i) for i in node.input]
    if domain == "" and (f := HANDLERS.get(node.op_type)):
        return f(imp, node, scope)
    importer = importer_for(domain, node.op_type, opset) if old_opset_is_safe(domain, node.op_type, opset) else None
    if importer is not None:
        return _tensor_op(imp, importer, node, scope, opset, inputs)
    body = functions.schema_function(node, scope, domain, opset, inputs)
    if body is None:
        raise UnsupportedError(why_unsupported(domain, node.op_type, opset))
    return _expand(imp, node, scope, body)


def _expand(imp: Importer, node: NodeProto, scope: Scope, body: FunctionProto) -> None:
    """The tasks of a function's body, in place of `node`."""
    inner, pairs = functions.call(imp, node, scope, body)
    imp.push(*node_tasks(inner), BindTask(pairs))


def _tensor_op(imp: Importer, importer: OnnxImporter, node: NodeProto, scope: Scope, opset: int,
               inputs: Sequence[Item]) -> Sequence[Item]:
    values: list[Value | None] = []
    for name, x in zip(node.input, inputs, strict=True):
        if isinstance(x, tuple):
            raise UnsupportedError(f"input {name!r} is a sequence, which only sequence operators take")
        values.append(x)
    view = OnnxNode(node.op_type, node.name, opset, tuple(values), plain(node, scope), len(node.output), imp.static_value)
    out = importer(view, imp.builder)
    return (out,) if isinstance(out, Value) else tuple(out)


def old_opset_is_safe(domain: str, op_type: str, opset: int) -> bool:
    """Importers are written for opset 7 on. Older models are fine as far as an operator has not changed since."""
    if domain != "" or opset >= 7:
        return True
    old, new = find_schema("", op_type, opset), find_schema("", op_type, 7)
    return old is not None and new is not None and old.since_version == new.since_version


def why_unsupported(domain: str, op_type: str, opset: int) -> str:
    """One clause on why there is no way to import an operator."""
    import onnx
    full = full_name(domain, op_type)
    if onnx.defs.has(op_type, domain):
        if domain == "" and opset < 7 and importer_for(domain, op_type, 7) is not None:
            return f"opset {opset} of {full} is too old; convert the model to opset 7 or newer with onnx.version_converter"
        return f"the operator {full} (opset {opset}) is not supported"
    if domain in ("", "ai.onnx.ml"):
        return f"ONNX has no operator {full}"
    return f"the operator {full} belongs to the unknown domain {domain!r}; export the model without it, or with its function body"


def _located(e: TilewrightError, node: NodeProto) -> TilewrightError:
    where = describe(node)
    return e if str(e).startswith(where) else type(e)(f"{where}: {e}")


def _blame_node(imp: Importer, node: NodeProto, scope: Scope) -> None:
    """An importer stumbled: raises ModelError if the node breaks ONNX's own rules. Otherwise it is our bug."""
    import onnx
    context = onnx.checker.C.CheckerContext()
    context.ir_version = scope.model.proto.ir_version
    context.opset_imports = dict(scope.opsets)
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as e:
        reason = str(e).strip().splitlines()[0]
        raise ModelError(f"{describe(node)} is not valid ONNX: {reason}") from None
    missing = [k for k, name in enumerate(node.input) if name and imp.get(scope, name) is None]
    if missing:
        raise ModelError(f"{describe(node)}: its input {node.input[missing[0]]!r} is an absent optional value") from None


def node_tasks(scope: Scope) -> tuple[NodeTask, ...]:
    return tuple(NodeTask(n, scope) for n in scope.nodes)

