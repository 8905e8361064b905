"""ONNX as a torch module, for timing torch (eager and inductor) on the same model: the operators that common networks use.

    net = module("model.onnx", inputs); outputs = net(*tensors)

Shapes are those of `inputs`. What follows from weights and shapes alone is computed once, so that `torch.compile` sees
tensor operations only. An operator that is not here raises NotImplementedError, which the benchmark reports.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from onnx import helper, numpy_helper
from torch import Tensor  # pyright: ignore[reportMissingImports]

_SMALL = 64  # elements of what may be a shape, axes or a limit


@dataclass(frozen=True, slots=True)
class _Node:
    """One node with its attributes; `static`: the numbers in its small inputs that do not change, by position."""

    op: str
    attrs: Mapping[str, object]
    static: Mapping[int, object]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int

    def run(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        out = _OPS[self.op](_Call(self, [values[i] if i else None for i in self.inputs]))
        return [out] if isinstance(out, Tensor) else list(out)


@dataclass(frozen=True, slots=True)
class _Call:
    """A node and its arguments, with typed access to both."""

    node: _Node
    args: list[Tensor | None]

    def __getitem__(self, k: int) -> Tensor:
        found = self.args[k]
        assert found is not None, f"{self.node.op} lacks input {k}"
        return found

    def maybe(self, k: int) -> Tensor | None:
        return self.args[k] if k < len(self.args) else None

    def number(self, name: str, default: float) -> float:
        return cast(float, self.node.attrs.get(name, default))

    def whole(self, name: str, default: int) -> int:
        return cast(int, self.node.attrs.get(name, default))

    def wholes(self, name: str, default: Sequence[int]) -> list[int]:
        return list(cast("Sequence[int]", self.node.attrs.get(name, default)))

    def text(self, name: str, default: str) -> str:
        return cast(bytes, self.node.attrs.get(name, default.encode())).decode()

    def tensor(self, name: str, default: float) -> np.ndarray:
        found = self.node.attrs.get(name)
        return numpy_helper.to_array(cast(onnx.TensorProto, found)) if found is not None else np.array(default, np.float32)

    def list(self, k: int, name: str = "") -> list[int] | None:
        """The numbers of input k, or, in older opsets, of the attribute `name`."""
        if k in self.node.static:
            found = self.node.static[k]
            return cast("list[int]", found if isinstance(found, list) else [found])
        if (x := self.maybe(k)) is not None:
            return x.reshape(-1).tolist()
        found = self.node.attrs.get(name)
        return None if found is None else list(cast("Sequence[int]", found))

    def limit(self, k: int, name: str) -> float | None:
        """A scalar input, or attribute."""
        if name in self.node.attrs:
            return cast(float, self.node.attrs[name])
        found = self.list(k)
        return found[0] if found else None

    def pads(self) -> tuple[list[int], list[int]]:
        """Before and after, for each spatial dimension. Raises NotImplementedError for automatic ones."""
        if self.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise NotImplementedError(f"{self.node.op} with auto_pad")
        dims = self[0].ndim - 2
        pads = self.wholes("pads", [0] * 2 * dims)
        return pads[:dims], pads[dims:]

    def even(self, fill: float) -> tuple[Tensor, list[int]]:
        """The data, and the padding on either side that is left to do: uneven padding is done here."""
        before, after = self.pads()
        if before == after:
            return self[0], before
        return F.pad(self[0], [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair], value=fill), [0] * len(before)


def module(path: str | Path, inputs: Sequence[np.ndarray]) -> torch.nn.Module:
    """The model as a module that takes its inputs in order and returns a tuple. Raises NotImplementedError."""
    return _Net(onnx.load(str(path)), [torch.from_numpy(np.array(a)) for a in inputs]).eval()


class _Net(torch.nn.Module):
    def __init__(self, model: onnx.ModelProto, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        graph, opset = model.graph, next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        static = {i.name: torch.from_numpy(np.array(numpy_helper.to_array(i))) for i in graph.initializer}
        self._names = [i.name for i in graph.input if i.name not in static]
        self._results = [o.name for o in graph.output]
        values: dict[str, Tensor] = static | dict(zip(self._names, inputs, strict=True))
        self._steps: list[_Node] = []
        for n in graph.node:
            if n.op_type not in _OPS:
                raise NotImplementedError(f"{n.op_type} is not known to tilewright.bench.onnx_torch")
            numbers = {k: static[i].tolist() for k, i in enumerate(n.input) if i in static and static[i].numel() <= _SMALL}
            node = _Node(n.op_type, {a.name: helper.get_attribute_value(a) for a in n.attribute}, numbers, tuple(n.input),
                         tuple(n.output), opset)
            known = dict(zip(n.output, node.run(values), strict=False))
            values |= known
            if n.op_type == "Shape" or all(i in static for i in n.input if i):
                static |= known
            else:
                self._steps.append(node)
        used = {i for s in self._steps for i in s.inputs} | set(self._results)
        self._static = {k: v for k, v in static.items() if k in used}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = dict(self._static)
        values.update(zip(self._names, inputs, strict=True))
        for s in self._steps:
            values.update(zip(s.outputs, s.run(values), strict=False))
        return tuple(values[r] for r in self._results)


def _conv(c: _Call) -> Tensor:
    x, pads = c.even(0.0)
    one = [1] * (x.ndim - 2)
    call = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return call(x, c[1], c.maybe(2), c.wholes("strides", one), pads, c.wholes("dilations", one), c.whole("group", 1))


def _conv_transpose(c: _Call) -> Tensor:
    before, after = c.pads()
    if before != after or len(before) != 2:
        raise NotImplementedError("ConvTranspose with uneven pads, or not of images")
    return F.conv_transpose2d(c[0], c[1], c.maybe(2), c.wholes("strides", [1, 1]), before, c.wholes("output_padding", [0, 0]),
                              c.whole("group", 1), c.wholes("dilations", [1, 1]))


def _max_pool(c: _Call) -> Tensor:
    x, pads = c.even(-torch.inf)
    return F.max_pool2d(x, c.wholes("kernel_shape", ()), c.wholes("strides", [1, 1]), pads, c.wholes("dilations", [1, 1]),
                        bool(c.whole("ceil_mode", 0)))


def _average_pool(c: _Call) -> Tensor:
    before, after = c.pads()
    if before != after:
        raise NotImplementedError("AveragePool with uneven pads")
    return F.avg_pool2d(c[0], c.wholes("kernel_shape", ()), c.wholes("strides", [1, 1]), before, bool(c.whole("ceil_mode", 0)),
                        bool(c.whole("count_include_pad", 0)))


def _gemm(c: _Call) -> Tensor:
    p, q = (c[k].T if c.whole(f, 0) else c[k] for k, f in ((0, "transA"), (1, "transB")))
    alpha, bias = c.number("alpha", 1.0), c.maybe(2)
    return alpha * (p @ q) if bias is None else torch.addmm(bias, p, q, beta=c.number("beta", 1.0), alpha=alpha)


def _batch_norm(c: _Call) -> Tensor:
    return F.batch_norm(c[0], c[3], c[4], c[1], c[2], False, 0.0, c.number("epsilon", 1e-5))


def _layer_norm(c: _Call) -> Tensor:
    return F.layer_norm(c[0], c[0].shape[c.whole("axis", -1) % c[0].ndim:], c[1], c.maybe(2), c.number("epsilon", 1e-5))


def _reshape(c: _Call) -> Tensor:
    return c[0].reshape([c[0].shape[k] if n == 0 else n for k, n in enumerate(c.list(1, "shape") or ())])


def _flatten(c: _Call) -> Tensor:
    return c[0].reshape(int(np.prod(c[0].shape[:c.whole("axis", 1)])), -1)


def _unsqueeze(c: _Call) -> Tensor:
    axes, out = c.list(1, "axes") or [], c[0]
    for k in sorted(n % (c[0].ndim + len(axes)) for n in axes):
        out = out.unsqueeze(k)
    return out


def _squeeze(c: _Call) -> Tensor:
    axes = c.list(1, "axes")
    return c[0].squeeze() if axes is None else c[0].squeeze(tuple(axes))


def _slice(c: _Call) -> Tensor:
    starts, ends, steps = c.list(1, "starts") or [], c.list(2, "ends") or [], c.list(4, "steps")
    axes = c.list(3, "axes")
    if any(s < 0 for s in steps or ()):
        raise NotImplementedError("Slice with a negative step")
    index = [slice(None)] * c[0].ndim
    for k, (axis, start, end) in enumerate(zip(axes or range(len(starts)), starts, ends, strict=True)):
        index[axis] = slice(start, min(end, 1 << 40), steps[k] if steps else 1)
    return c[0][tuple(index)]


def _split(c: _Call) -> Sequence[Tensor]:
    axis, sizes, count = c.whole("axis", 0), c.list(1, "split"), c.whole("num_outputs", len(c.node.outputs))
    return c[0].split(sizes, axis) if sizes is not None else c[0].chunk(count, axis)


def _gather(c: _Call) -> Tensor:
    x, axis = c[0], c.whole("axis", 0) % max(1, c[0].ndim)
    index = torch.where(c[1] < 0, c[1] + x.shape[axis], c[1])
    return x.index_select(axis, index.reshape(-1)).reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1:]])


def _reduce(function: Callable[..., Tensor]) -> Callable[[_Call], Tensor]:
    def run(c: _Call) -> Tensor:
        axes = c.list(1, "axes")
        return function(c[0], list(range(c[0].ndim)) if axes is None else axes, keepdim=bool(c.whole("keepdims", 1)))
    return run


def _over_space(function: Callable[..., Tensor]) -> Callable[[_Call], Tensor]:
    return lambda c: function(c[0], list(range(2, c[0].ndim)), keepdim=True)


def _softmax(c: _Call) -> Tensor:
    if c.node.opset >= 13:
        return F.softmax(c[0], c.whole("axis", -1))
    x, axis = c[0], c.whole("axis", 1)  # over all dimensions from this one on
    return F.softmax(x.reshape([*x.shape[:axis], -1]), -1).reshape(x.shape)


def _lrn(c: _Call) -> Tensor:
    return F.local_response_norm(c[0], c.whole("size", 1), c.number("alpha", 1e-4), c.number("beta", 0.75), c.number("bias", 1.0))


def _pad(c: _Call) -> Tensor:
    pads, rank = c.list(1, "pads") or [], c[0].ndim
    if c.text("mode", "constant") != "constant":
        raise NotImplementedError("Pad that is not constant")
    return F.pad(c[0], [p for k in reversed(range(rank)) for p in (pads[k], pads[k + rank])], value=c.limit(2, "value") or 0.0)


def _resize(c: _Call) -> Tensor:
    scales, sizes = c.list(2), c.list(3)
    if c.text("mode", "nearest") == "nearest" and c.text("coordinate_transformation_mode", "half_pixel") in ("asymmetric", "half_pixel"):
        if sizes:
            return F.interpolate(c[0], size=sizes[2:], mode="nearest")
        if scales and all(s == int(s) for s in scales):  # then both coordinate modes pick the same pixels
            return F.interpolate(c[0], scale_factor=[float(s) for s in scales[2:]], mode="nearest")
    raise NotImplementedError(f"Resize in mode {c.text('mode', 'nearest')}, {c.text('coordinate_transformation_mode', 'half_pixel')}")


def _div(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _on(function: Callable[..., Tensor], count: int = 1) -> Callable[[_Call], Tensor]:
    """`function` of the first `count` inputs."""
    return lambda c: function(*(c[k] for k in range(count)))


_TYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16,
          11: torch.float64}
_OPS: dict[str, Callable[[_Call], Tensor | Sequence[Tensor]]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MaxPool": _max_pool, "AveragePool": _average_pool, "Gemm": _gemm,
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "Reshape": _reshape, "Flatten": _flatten,
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Slice": _slice, "Split": _split, "Gather": _gather, "LRN": _lrn,
    "Resize": _resize, "Pad": _pad, "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "GlobalAveragePool": _over_space(torch.mean), "GlobalMaxPool": _over_space(torch.amax),
    "Softmax": _softmax,
    "Clip": lambda c: c[0].clamp(c.limit(1, "min"), c.limit(2, "max")),
    "Gelu": lambda c: F.gelu(c[0], approximate=c.text("approximate", "none")),
    "Transpose": lambda c: c[0].permute(c.wholes("perm", range(c[0].ndim)[::-1])),
    "Concat": lambda c: torch.cat([x for x in c.args if x is not None], c.whole("axis", 0)),
    "Cast": lambda c: c[0].to(_TYPES[c.whole("to", 1)]),
    "Constant": lambda c: torch.from_numpy(np.array(c.tensor("value", 0.0))),
    "ConstantOfShape": lambda c: torch.from_numpy(np.full(c.list(0) or (), c.tensor("value", 0.0))),
    "Shape": lambda c: torch.tensor(c[0].shape),
    "Expand": lambda c: c[0] * torch.ones(c.list(1) or (), dtype=c[0].dtype),
    "HardSigmoid": lambda c: (c[0] * c.number("alpha", 0.2) + c.number("beta", 0.5)).clamp(0, 1),
    "LeakyRelu": lambda c: F.leaky_relu(c[0], c.number("alpha", 0.01)),
    "Sum": lambda c: sum((c[k] for k in range(1, len(c.args))), c[0]),
    "Identity": _on(lambda x: x), "Dropout": _on(lambda x: x), "HardSwish": _on(F.hardswish), "Relu": _on(F.relu),
    "Sigmoid": _on(torch.sigmoid), "Tanh": _on(torch.tanh), "Erf": _on(torch.erf), "Exp": _on(torch.exp), "Log": _on(torch.log),
    "Sqrt": _on(torch.sqrt), "Neg": _on(torch.neg), "Abs": _on(torch.abs), "Reciprocal": _on(torch.reciprocal),
    "Floor": _on(torch.floor), "Not": _on(torch.logical_not), "Add": _on(torch.add, 2), "Sub": _on(torch.sub, 2),
    "Mul": _on(torch.mul, 2), "MatMul": _on(torch.matmul, 2), "Div": _on(_div, 2), "Pow": _on(torch.pow, 2),
    "Equal": _on(torch.eq, 2), "Greater": _on(torch.gt, 2), "Less": _on(torch.lt, 2), "Max": _on(torch.maximum, 2),
    "Min": _on(torch.minimum, 2), "Where": _on(torch.where, 3),
}
