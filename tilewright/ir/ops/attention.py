"""Scaled dot-product attention from ONNX (opset 23 on), in terms of matmul, softmax and masks; and the `band` mask."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, all_of, select, wrap
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..samples import tolerance, values
from ..types import BF16, BOOL, F16, F32, F64, I64, TensorType
from .convert import convert, onnx_dtype
from .elementwise import scalar_like

UNBOUNDED = 1 << 40  # a diagonal that no matrix has


@dataclass(frozen=True, slots=True)
class BandAttrs(Attrs):
    low: int = -UNBOUNDED
    high: int = UNBOUNDED
    fill: float = -math.inf


@register
class Band(Op):
    """x[..., i, j] where low <= j - i <= high, else `fill`: causal masks (high = 0) and sliding windows, without a mask
    tensor."""

    name = "band"
    Attrs = BandAttrs

    def infer(self, attrs: BandAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if x.rank < 2 or not x.dtype.is_float:
            raise self.fail(f"takes matrices of floats, not {x}")
        return (x,)

    def reference(self, attrs: BandAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        diagonal = np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]
        inside = (diagonal >= attrs.low) & (diagonal <= attrs.high)
        return (np.where(inside, x, np.asarray(attrs.fill, np.float64).astype(x.dtype)),)

    def compute(self, attrs: BandAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        def value(*f: Expr) -> Expr:
            i, j = f[-2:]
            conditions = []
            if attrs.low > 1 - x.shape[-2]:
                conditions.append(j >= i + attrs.low)
            if attrs.high < x.shape[-1] - 1:
                conditions.append(j <= i + attrs.high)
            inside = all_of(conditions)
            return x[f] if inside is None else select(inside, x[f], wrap(attrs.fill, x.dtype))
        return (compute("out0", x.dtype, x.shape, value),)

    def samples(self) -> Iterable[Sample]:
        for d in (F32, F64, F16, BF16):
            yield Sample((values((2, 5, 7), d),), BandAttrs(high=0), rtol=tolerance(d))
        for low, high in ((-1, 2), (-UNBOUNDED, -3), (2, UNBOUNDED), (-9, 9), (3, 1), (-UNBOUNDED, UNBOUNDED)):
            yield Sample((values((5, 3), F32, special=True),), BandAttrs(low, high))
        yield Sample((values((3, 17), F32),), BandAttrs(0, 0, 0.0))
        yield Sample((values((0, 4), F32),), BandAttrs(high=0))


# -- ONNX ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Sizes:
    """batch, query heads, key heads, queries, keys (past ones included)."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int


def _int(n: OnnxNode, key: str, default: int = 0) -> int:
    return int(n.attrs.get(key, default))  # type: ignore[call-overload]


@from_onnx("Attention", since=23)
def _attention(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    flat = n.need(0).type.rank == 3
    q = _heads(n, b, 0, _int(n, "q_num_heads"))
    k, v = (_with_past(n, b, i, _heads(n, b, i, _int(n, "kv_num_heads"))) for i in (1, 2))
    s = _Sizes(q.type.shape[0], q.type.shape[1], k.type.shape[1], q.type.shape[2], k.type.shape[2])
    if s.kv_heads == 0 or s.heads % s.kv_heads or v.type.shape[1] != s.kv_heads:
        raise ShapeError(f"Attention {n.name!r}: {s.heads} query heads do not share {s.kv_heads} heads of keys and "
                         f"{v.type.shape[1]} of values")
    logits = _scores(n, b, q, k, s)
    softcap = float(n.attrs.get("softcap", 0.0))  # type: ignore[arg-type]
    capped = logits
    if softcap > 0:
        capped = b.op("tanh", b.op("div", logits, scalar_like(b, logits, softcap)))
        capped = b.op("mul", capped, scalar_like(b, capped, softcap))
    biased, masked = _masked(n, b, capped, s)
    wide = convert(b, biased, onnx_dtype(n, "softmax_precision")) if n.attrs.get("softmax_precision") else biased
    weights = convert(b, b.op("softmax", wide, axis=3, masked=int(masked)), q.type.dtype)
    y = _ungrouped(b, b.op("matmul", _grouped(b, weights, s), v), s)
    if flat:
        y = b.op("reshape", b.op("transpose", y, perm=(0, 2, 1, 3)), shape=(s.batch, s.queries, s.heads * v.type.shape[3]))
    seen = (logits, capped, biased, weights)[_int(n, "qk_matmul_output_mode")]
    return [y, k, v, seen][:n.n_outputs]


def _heads(n: OnnxNode, b: GraphBuilder, i: int, heads: int) -> Value:
    """Input i as [batch, heads, sequence, head size]."""
    x = n.need(i)
    if x.type.rank == 4:
        return x
    if x.type.rank != 3 or heads < 1 or x.type.shape[2] % heads:
        raise ShapeError(f"Attention {n.name!r}: input {i}, {x.type}, does not split into {heads} heads")
    batch, length, width = x.type.shape
    return b.op("transpose", b.op("reshape", x, shape=(batch, length, heads, width // heads)), perm=(0, 2, 1, 3))


def _with_past(n: OnnxNode, b: GraphBuilder, i: int, x: Value) -> Value:
    past = n.input(i + 3)
    return x if past is None else b.emit("concat", (past, x), axis=2)[0]


def _grouped(b: GraphBuilder, x: Value, s: _Sizes) -> Value:
    """The query heads that share a key head become rows of one matrix: [batch, key heads, group * queries, …]."""
    if s.heads == s.kv_heads:
        return x
    return b.op("reshape", x, shape=(s.batch, s.kv_heads, s.heads // s.kv_heads * s.queries, x.type.shape[3]))


def _ungrouped(b: GraphBuilder, x: Value, s: _Sizes) -> Value:
    return x if s.heads == s.kv_heads else b.op("reshape", x, shape=(s.batch, s.heads, s.queries, x.type.shape[3]))


def _scores(n: OnnxNode, b: GraphBuilder, q: Value, k: Value, s: _Sizes) -> Value:
    """scale * Q K^T. Half floats scale both operands by its root, as ONNX does: their range is narrow."""
    given = n.attrs.get("scale")
    scale = 1 / math.sqrt(q.type.shape[3]) if given is None else float(given)  # type: ignore[arg-type]
    if q.type.dtype.bits == 16 and scale >= 0:
        root = scalar_like(b, q, math.sqrt(scale))
        q, k = b.op("mul", q, root), b.op("mul", k, root)
    else:
        q = b.op("mul", q, scalar_like(b, q, scale))
    keys = b.op("transpose", k, perm=(0, 1, 3, 2))
    return _ungrouped(b, b.op("matmul", _grouped(b, q, s), keys), s)


def _masked(n: OnnxNode, b: GraphBuilder, x: Value, s: _Sizes) -> tuple[Value, bool]:
    """x with all masks applied, and whether whole rows may be masked."""
    x0 = x
    mask, lengths = n.input(3), n.input(6)
    if mask is not None:
        mask = _padded(b, mask, s.keys)
        x = _where(b, mask, x) if mask.type.dtype is BOOL else b.op("add", x, convert(b, mask, x.type.dtype))
    causal, left, right = _int(n, "is_causal"), _int(n, "left_window_size", -1), _int(n, "right_window_size", -1)
    high = min(0 if causal else UNBOUNDED, right if right >= 0 else UNBOUNDED)
    past = n.input(4)
    if lengths is None:
        offset = past.type.shape[2] if past is not None else 0
        low = offset - left if left >= 0 else -UNBOUNDED
        if high < UNBOUNDED or left >= 0:
            x = b.op("band", x, low=low, high=offset + high if high < UNBOUNDED else UNBOUNDED)
        return x, mask is not None or left >= 0 or s.keys == 0
    lengths = b.op("reshape", convert(b, lengths, I64), shape=(lengths.type.size, 1, 1, 1))
    key = b.constant(np.arange(s.keys))
    query = b.op("add", b.op("sub", lengths, b.constant(s.queries)), b.constant(np.arange(s.queries)[:, None]))
    x = _where(b, b.op("lt", key, lengths), x)
    if high < UNBOUNDED:
        x = _where(b, b.op("le", key, b.op("add", query, b.constant(high))), x)
    if left >= 0:
        x = _where(b, b.op("ge", key, b.op("sub", query, b.constant(left))), x)
    return x, x is not x0


def _where(b: GraphBuilder, keep: Value, x: Value) -> Value:
    return b.op("where", keep, x, scalar_like(b, x, -math.inf))


def _padded(b: GraphBuilder, mask: Value, keys: int) -> Value:
    """A mask that covers fewer keys than there are hides the rest."""
    missing = keys - mask.type.shape[-1]
    if missing <= 0:
        return mask
    zeros = (0,) * (mask.type.rank - 1)
    return b.op("pad", mask, before=(*zeros, 0), after=(*zeros, missing), value=0 if mask.type.dtype is BOOL else -math.inf)
