"""What an operator is, and the registry of all of them.

One op = one class in `ir/ops/`: attributes, type rule, NumPy reference, meaning as tensor computations (`compute`), as
other ops (`decompose`) or as loops for numba (`kernel`, irregular ops only), samples for the tests, and how ONNX spells
it. To add an op, write one class decorated with `@register`; tests, frontends, fusion and code generation find it there.

Fusion kind is derived from the computations (`ir/kinds.py`), never declared.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ShapeError
from .expr import Buffer
from .graph import Attrs, Value
from .program import Compute
from .types import TensorType

if TYPE_CHECKING:
    from .builder import GraphBuilder


@dataclass(frozen=True, slots=True)
class Sample:
    """One small case of an op for the contract test: input arrays (None: absent) and attributes."""

    inputs: tuple[np.ndarray | None, ...]
    attrs: Attrs = Attrs()
    rtol: float = 1e-5


class Op:
    """Base of all operators. `name` is the IR's spelling; `Attrs` the class of its attributes.

    `onnx`: the ONNX operator this op equals one to one (same inputs, attributes of the same names), or "" when the
    import is more than that; then a function decorated with `@from_onnx` stands beside the class.
    """

    name: ClassVar[str]
    onnx: ClassVar[str] = ""
    Attrs: ClassVar[type[Attrs]] = Attrs
    random: ClassVar[bool] = False          # equal inputs may give different results: never folded, merged or prepared
    native: ClassVar[bool] = False          # irregular, and without a `kernel`: all its code is emitted (backends/llvm/native.py)
    flat: ClassVar[bool] = False            # `kernel` sees every array as one-dimensional
    data_dependent: ClassVar[bool] = False  # the output's shape depends on the input's values: see `evaluate`

    def infer(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        """Output types. Raises ShapeError where the inputs do not fit."""
        raise NotImplementedError(self.name)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """The op's meaning in NumPy, for any inputs that `infer` accepts."""
        raise NotImplementedError(self.name)

    def compute(self, attrs: Attrs, outs: tuple[TensorType, ...], *ins: Buffer | None) -> tuple[Compute, ...] | None:
        """Tensor computations; those named "out0", "out1", … define the outputs, others are intermediate. None: see `decompose`."""
        return None

    def decompose(self, attrs: Attrs, b: GraphBuilder, *ins: Value | None) -> tuple[Value, ...] | None:
        """The same in terms of other ops, built with `b`. None: the op has a `compute` or a `kernel`."""
        return None

    def kernel(self, attrs: Attrs, *ins: TensorType | None) -> Callable[..., None] | None:
        """Irregular ops: a function for numba's nopython mode, `f(in0, in1, …, out0, …, memory0, …)` over C-contiguous arrays
        of the inferred types, that fills the outputs. It returns 0 or nothing, 1 where an index is out of range; it makes no
        arrays and calls nothing but arithmetic, so that all of it becomes part of the compiled model. None for every regular op."""
        return None

    def memory(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        """Arrays that `kernel` needs besides its inputs and outputs. They hold anything when it begins."""
        return ()

    def evaluate(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Data-dependent ops: the outputs, computed on the host between two segments of the compiled model. Such ops
        have no `infer`: their output types are known only here."""
        return self.reference(attrs, *ins)

    def samples(self) -> Iterable[Sample]:
        return ()

    def fail(self, message: str) -> ShapeError:
        return ShapeError(f"{self.name}: {message}")


OPS: dict[str, Op] = {}


def register(cls: type[Op]) -> type[Op]:
    """Class decorator: makes one instance of the op known under its name."""
    assert cls.name not in OPS, f"op {cls.name} is registered twice"
    OPS[cls.name] = cls()
    return cls


@dataclass(frozen=True)
class OnnxNode:
    """An ONNX node as the importers see it. `attrs` holds plain Python values: int, float, str, np.ndarray for tensors,
    tuples of those; graph-valued attributes never reach an importer in ir/ops."""

    op_type: str
    name: str
    opset: int
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, object]
    n_outputs: int
    static_value: Callable[[Value], np.ndarray]

    def input(self, i: int) -> Value | None:
        """Input i, None when it is absent or beyond the end."""
        return self.inputs[i] if i < len(self.inputs) else None

    def need(self, i: int) -> Value:
        v = self.input(i)
        if v is None:
            raise ShapeError(f"{self.op_type} {self.name!r}: input {i} is missing")
        return v

    def static(self, i: int) -> np.ndarray | None:
        """The value of input i at compile time, None when the input is absent. Where it is only known at run time this
        raises NeedsValue, and the frontend compiles the rest of the graph per value."""
        v = self.input(i)
        return None if v is None else self.static_value(v)

    def ints(self, i: int) -> tuple[int, ...] | None:
        """`static(i)` as a tuple of ints."""
        a = self.static(i)
        return None if a is None else tuple(int(x) for x in np.ravel(a))


OnnxImporter = Callable[[OnnxNode, "GraphBuilder"], "Value | Sequence[Value | None]"]
ONNX: dict[tuple[str, str], list[tuple[int, OnnxImporter]]] = {}  # (domain, op_type) -> [(since opset, importer)], ascending


def from_onnx(op_type: str, since: int = 1, domain: str = "") -> Callable[[OnnxImporter], OnnxImporter]:
    """Function decorator: how nodes of `op_type`, from opset `since` until the next registered one, become IR."""
    def add(f: OnnxImporter) -> OnnxImporter:
        entries = ONNX.setdefault((domain, op_type), [])
        assert since not in [s for s, _ in entries], f"ONNX {op_type}-{since} has two importers"
        entries.append((since, f))
        entries.sort(key=lambda e: e[0])
        return f
    return add


def importer_for(domain: str, op_type: str, opset: int) -> OnnxImporter | None:
    """The importer for an ONNX op at `opset` (None: unsupported). One-to-one ops need no function of their own."""
    from . import ops  # noqa: F401  (registers everything)
    found = [f for since, f in ONNX.get((domain, op_type), ()) if since <= opset]
    if found:
        return found[-1]
    if domain == "" and (op := _one_to_one().get(op_type)):
        return _generic(op)
    return None


_ONE_TO_ONE: dict[str, Op] = {}


def _one_to_one() -> dict[str, Op]:
    if not _ONE_TO_ONE:
        _ONE_TO_ONE.update({o.onnx: o for o in OPS.values() if o.onnx})
    return _ONE_TO_ONE


def _generic(op: Op) -> OnnxImporter:
    import dataclasses

    from .builder import make_attrs

    def build(n: OnnxNode, b: GraphBuilder) -> Sequence[Value]:
        names = {f.name for f in dataclasses.fields(op.Attrs)}
        return b.emit(op.name, n.inputs, make_attrs(op, {k: v for k, v in n.attrs.items() if k in names}))
    return build
