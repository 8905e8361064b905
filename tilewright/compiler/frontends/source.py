"""What a frontend gives the compiler: a `Source` that imports itself as concrete graphs, segment by segment.

A model becomes one graph wherever its shapes follow from the shapes of its inputs. Two things break that:

- An operator needs the *value* of a tensor while the model is imported (Reshape's target shape, Loop's trip count). If
  it follows from small inputs, those become *static* inputs: the model is specialised by their value. Otherwise the model
  is cut before that operator, and the rest is specialised by the value that the first part computes.
- An operator's output shape depends on data (NonZero, Unique). The model is cut, the operator is evaluated on the host
  (`Op.evaluate`), and the rest is imported with the shapes that came out.

    model = segment 0 -> [host step] -> segment 1 -> … -> results

Each `Continuation` holds the source of the rest. `frontends/driver.py` runs the whole chain with NumPy; it is the
specification for the executable, which compiles each segment and caches it by `(types, static values)`.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...errors import InputError, TilewrightError
from ...ir.graph import Attrs, Graph
from ...ir.types import UNKNOWN_RANK, TensorSpec, TensorType, dtype_of


@dataclass(frozen=True, slots=True)
class SequenceType:
    """The type of a list of tensors at one call: its length is known, like a tensor's shape."""

    elements: tuple[ValueType, ...]


ValueType = TensorType | SequenceType | None  # None: an optional input that is absent
Data = np.ndarray | Sequence["Data"] | None   # what a call passes for one input, or gets for one output
Path = tuple[str | int, ...]                  # (input name, position in the sequence, …)
Tree = int | tuple["Tree", ...] | None        # a result: index of a graph output, a list of results, or absent


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """An input or output that is a list of tensors; `element` describes each."""

    name: str
    element: TensorSpec | SequenceSpec | OptionalSpec


@dataclass(frozen=True, slots=True)
class OptionalSpec:
    """An input or output that may be None."""

    name: str
    element: TensorSpec | SequenceSpec


@dataclass(frozen=True, slots=True)
class AnySpec:
    """A value between two segments whose type is only known when it has been computed."""

    name: str


InputSpec = TensorSpec | SequenceSpec | OptionalSpec | AnySpec


class NeedsValue(TilewrightError):
    """The model cannot be imported without the values of the inputs `names`: import `source.with_static(names)` instead,
    with these values. Reaches a user only where no values exist, as in an ahead-of-time export."""

    def __init__(self, names: frozenset[str], where: str):
        super().__init__(f"{where} needs the value of input {', '.join(sorted(names))} at compile time")
        self.names = names


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor at the border of a segment: `kind` is "input" or "output", `index` counts the graph's inputs or outputs."""

    kind: str
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class HostStep:
    """`OPS[op].evaluate(attrs, *inputs)` between two segments; the tuple it returns becomes the continuation's input
    `result`. An input is a tensor of the segment, an array known when the model was imported, or absent."""

    op: str
    attrs: Attrs
    inputs: tuple[Ref | np.ndarray | None, ...]
    result: str


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """What follows a segment: `feeds` names the inputs of `source` and says where in the segment they come from."""

    step: HostStep | None
    source: Source
    feeds: tuple[tuple[str, Ref], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One concrete graph of a source.

    inputs:  which part of the source's inputs feeds each of `graph.inputs`; static and absent inputs are not among them.
    results: the model's results in order of `Source.outputs`, for the last segment; empty for the others.
    weights: the model's name of an updatable constant -> its name in the graph.
    """

    graph: Graph
    inputs: tuple[Path, ...]
    results: tuple[Tree, ...]
    weights: Mapping[str, str]
    next: Continuation | None = None


class Source(Protocol):
    """A model, ready to be imported. Immutable; symbolic dimensions in `inputs` and `outputs` are strings."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...
    @property
    def outputs(self) -> tuple[InputSpec, ...]: ...
    @property
    def static_inputs(self) -> frozenset[str]: ...

    def with_static(self, names: frozenset[str]) -> Source:
        """The same model, specialised by the values of `names` as well."""
        ...

    def import_graph(self, types: Mapping[str, ValueType | tuple[int, ...]], values: Mapping[str, Data] | None = None) -> Segment:
        """The graph for inputs of these types (a plain shape takes the dtype from `inputs`). `values` has an entry for
        every static input. Raises NeedsValue where another input has to be static, ModelError, UnsupportedError and
        InputError."""
        ...


def type_of(data: Data) -> ValueType:
    """The type of an argument. Raises InputError for element types that Tilewright does not have."""
    if data is None:
        return None
    if isinstance(data, (list, tuple)):
        return SequenceType(tuple(type_of(x) for x in data))
    a = np.asarray(data)
    try:
        return TensorType(dtype_of(a.dtype), a.shape)
    except TypeError as e:
        raise InputError(str(e)) from None


def leaves(path: Path, t: ValueType) -> Iterator[tuple[Path, TensorType]]:
    """The tensors inside a value of type `t`, in order."""
    if isinstance(t, TensorType):
        yield path, t
    elif isinstance(t, SequenceType):
        for k, e in enumerate(t.elements):
            yield from leaves((*path, k), e)


def pick(data: Mapping[str, Data], path: Path) -> np.ndarray:
    """The tensor at `path` of a call's arguments."""
    x: object = data[str(path[0])]
    for k in path[1:]:
        assert isinstance(x, (list, tuple)) and isinstance(k, int)
        x = x[k]
    return np.asarray(x)


def assemble(tree: Tree, outputs: Sequence[np.ndarray]) -> Data:
    """A result from the outputs of the last segment's graph."""
    if tree is None:
        return None
    return outputs[tree] if isinstance(tree, int) else [assemble(t, outputs) for t in tree]


def concrete_types(specs: Sequence[InputSpec], given: Mapping[str, ValueType | tuple[int, ...]]) -> dict[str, ValueType]:
    """Types for all `specs`, checked against them: names, dtypes, ranks, fixed and repeated symbolic dimensions."""
    known = {s.name for s in specs}
    for name in given:
        if name not in known:
            raise InputError(f"there is no input {name!r}; the model's inputs are {', '.join(sorted(known)) or 'none'}")
    dims: dict[str, tuple[int, str]] = {}
    return {s.name: _concrete(s, given, dims) for s in specs}


def _concrete(spec: InputSpec, given: Mapping[str, ValueType | tuple[int, ...]], dims: dict[str, tuple[int, str]]) -> ValueType:
    if spec.name not in given:
        if isinstance(spec, OptionalSpec):
            return None
        if isinstance(spec, TensorSpec) and all(isinstance(d, int) for d in spec.shape):
            return TensorType(dtype_of(spec.dtype), tuple(int(d) for d in spec.shape))
        raise InputError(f"the shape of input {spec.name!r} is missing")
    t = given[spec.name]
    if isinstance(t, tuple):
        if not isinstance(spec, TensorSpec):
            raise InputError(f"input {spec.name!r} is not a tensor and needs a full type, not the shape {t}")
        t = TensorType(dtype_of(spec.dtype), t)
    if isinstance(spec, TensorSpec):
        if not isinstance(t, TensorType):
            raise InputError(f"input {spec.name!r} must be one tensor")
        check_tensor(spec, t, dims)
    elif isinstance(spec, SequenceSpec) and not isinstance(t, SequenceType):
        raise InputError(f"input {spec.name!r} must be a list of tensors")
    return t


def check_tensor(spec: TensorSpec, t: TensorType, dims: dict[str, tuple[int, str]]) -> None:
    """Raises InputError where `t` does not fit `spec`. `dims`: symbolic dimension -> its size and the input that set it."""
    if np.dtype(spec.dtype) != t.dtype.numpy:
        raise InputError(f"input {spec.name!r} has dtype {t.dtype.numpy}, the model expects {spec.dtype}")
    if spec.shape == UNKNOWN_RANK:
        return
    if len(spec.shape) != t.rank:
        raise InputError(f"input {spec.name!r} has shape {list(t.shape)}, the model expects {list(spec.shape)}")
    for want, got in zip(spec.shape, t.shape, strict=True):
        if isinstance(want, int) and want != got:
            raise InputError(f"input {spec.name!r} has shape {list(t.shape)}, the model expects {list(spec.shape)}")
        if isinstance(want, str) and not want.startswith("?"):
            size, setter = dims.setdefault(want, (got, spec.name))
            if size != got:
                raise InputError(f"dimension {want!r} is {size} in input {setter!r} and {got} in input {spec.name!r}")
