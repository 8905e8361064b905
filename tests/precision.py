"""How far native results may lie from a graph's meaning: Monte Carlo arithmetic in f64 instead of picked tolerances.

The graph is run in f64 several times, each node with random rounding errors of the size that its own element type makes:

    inputs of the node * (1 + K * eps * u)      u uniform in [-1, 1), K: terms of each sum
    outputs * (1 + ULPS * eps * u)

An error of K*eps in each of K terms moves a sum by sqrt(K) * eps * sum|terms|, the probabilistic bound for a sum in any
order (Higham & Mary 2019). Ill-conditioned functions, cancellation and jumps (floor, comparisons, top-k) show in the
spread of the runs. Ops that only move or choose elements make no error, so they must be exact.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tilewright.compiler.passes.loop_bodies import unrolled
from tilewright.ir.graph import Graph, Node
from tilewright.ir.interpreter import run_graph
from tilewright.ir.op import OPS
from tilewright.ir.types import DType

DRAWS = 10
ULPS = 4.0     # of one scalar function; the functions' own tests hold them to less
MARGIN = 4.0   # the largest of DRAWS deviations, times this, is what no honest result exceeds
EXACT = frozenset("""abs neg sign floor ceil round trunc relu max min where eq ne lt le gt ge isnan isinf and or not xor reshape transpose
slice concat expand pad gather gather_elements gather_nd scatter_nd scatter_elements max_pool max_pool_index trilu band one_hot to_blocked
from_blocked bitcast diagonal reverse_sequence topk arg_reduce hardmax thresholded_relu cast shl shr cache_update""".split())  # noqa: SIM905
CANCELLING = frozenset({"gelu", "log_softmax"})  # their formulas cancel terms of the input's size: 1 + erf(x / sqrt 2), x - log sum
_EPS = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53}
_MAX = {"f16": 65504.0, "bf16": 3.39e38, "f32": 3.4028235e38, "f64": math.inf}
_TINY = {"f16": 2.0**-24, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}  # f32 results below may be flushed or exact


@dataclass(frozen=True, slots=True)
class Bound:
    """What a result must be close to: the reference, and the smallest and largest of it and the noisy runs."""

    want: np.ndarray
    low: np.ndarray
    high: np.ndarray
    exact: bool  # no noise reached it

    def check(self, got: np.ndarray, what: str = "") -> None:
        """Raises AssertionError where `got` is not a value that correct arithmetic may give."""
        want = self.want
        assert got.shape == want.shape and got.dtype == want.dtype, f"{what}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
        same = (got == self.want) | (_isnan(got) & _isnan(self.want))
        if same.all():
            return
        with np.errstate(all="ignore"):
            g = got.astype(np.float64)
            inside = (g >= self.low) & (g <= self.high)
        loose = np.isnan(self.low) | np.isnan(self.high)  # the runs do not agree on NaN: anything may come
        bad = ~(same | inside | loose)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise AssertionError(f"{what}: {int(bad.sum())} of {bad.size} elements are off; at {list(at)} {got[at]!r}, expected "
                                 f"{want[at]!r} within [{self.low[at]!r}, {self.high[at]!r}]")


def _isnan(a: np.ndarray) -> np.ndarray:
    return np.zeros(a.shape, bool) if a.dtype.kind in "iub" else np.isnan(a.astype(np.float64))


def bounds(graph: Graph, inputs: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, Bound]:
    """Output name -> Bound, around `run_graph` of the graph as it is. The noisy runs see loops written out."""
    want = run_graph(graph, inputs)
    names = [v.name for v in graph.outputs]
    graph = unrolled(graph)
    want = {v.name: want[n] for n, v in zip(names, graph.outputs, strict=True)}
    centre = _noisy(graph, inputs, None)
    rng = np.random.default_rng(seed)
    runs = [_noisy(graph, inputs, rng) for _ in range(DRAWS)]
    out = {}
    for name, v in zip(names, graph.outputs, strict=True):
        w, c = want[v.name].astype(np.float64), centre[v.name].astype(np.float64)
        samples = np.stack([r[v.name].astype(np.float64) for r in runs])
        with np.errstate(all="ignore"):
            if v.type.dtype.is_float:
                spread = np.max(np.abs(samples - c), axis=0, initial=0)
                spread = np.where((samples == c).all(axis=0), 0, spread)
                unsure = np.isnan(samples).any(axis=0) & ~(np.isnan(samples).all(axis=0) & np.isnan(w))
                t = np.where(unsure, np.nan, MARGIN * spread)
                finite = np.isfinite(c) & np.isfinite(t)
                limit = _MAX[v.type.dtype.name]
                tiny = np.where(t > 0, _TINY[v.type.dtype.name], 0)
                low = np.where(finite, np.minimum(c - t - tiny, w), np.where(np.isnan(t), t, np.minimum(samples.min(axis=0), w)))
                high = np.where(finite, np.maximum(c + t + tiny, w), np.where(np.isnan(t), t, np.maximum(samples.max(axis=0), w)))
                low, high = np.where(low < -limit, -np.inf, low), np.where(high > limit, np.inf, high)
            else:
                low, high = np.minimum(samples.min(axis=0), w), np.maximum(samples.max(axis=0), w)
        out[name] = Bound(want[v.name], low, high, bool((samples == c).all()))
    return out


def _noisy(graph: Graph, inputs: Mapping[str, np.ndarray], rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    env: dict[str, np.ndarray] = {k: _wide(c.array) for k, c in graph.constants.items()}
    env |= {v.name: _wide(np.asarray(inputs[v.name])) for v in graph.inputs}
    for n in graph.nodes:
        ins = [None if v is None else env[v.name] for v in n.inputs]
        eps = max((_EPS[v.type.dtype.name] for v in (*n.operands, *n.outputs) if v.type.dtype.is_float), default=0.0)
        noisy = rng is not None and n.op not in EXACT
        if noisy:
            k = terms(n)
            assert rng is not None
            ins = [_jitter(a, k * eps, rng) for a in ins]
        results = [np.asarray(r) for r in _reference(n, ins)]
        if rng is not None and n.op in CANCELLING and ins[0] is not None:
            size = eps * (1 + np.where(np.isfinite(ins[0]), np.abs(ins[0]), 0))
            results = [r + size * rng.uniform(-1, 1, r.shape) for r in results]
        for v, r in zip(n.outputs, results, strict=True):
            env[v.name] = _settle(r, v.type.dtype, ULPS * _EPS[v.type.dtype.name] if noisy and v.type.dtype.is_float else 0.0, rng)
    return {v.name: env[v.name] for v in graph.outputs}


def _reference(n: Node, ins: list[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """The op in f64. Its dtype-specific limits (a cast's, a quantisation's) stay its own."""
    with np.errstate(all="ignore"):
        if n.op == "cast" and not n.outputs[0].type.dtype.is_float and ins[0] is not None and ins[0].dtype.kind == "f":
            narrow = ins[0].astype(n.operands[0].type.dtype.numpy)
            return OPS[n.op].reference(n.attrs, narrow)
        if n.op in ("bitcast", "tree_ensemble"):  # whose meaning is in the bits: a forest's words hold numbers of the type of x
            return OPS[n.op].reference(n.attrs, *(None if a is None or v is None else a.astype(v.type.dtype.numpy)
                                                  for v, a in zip(n.inputs, ins, strict=True)))
        return OPS[n.op].reference(n.attrs, *ins)


def _wide(a: np.ndarray) -> np.ndarray:
    return a if a.dtype.kind in "iub" else a.astype(np.float64)


def _jitter(a: np.ndarray | None, size: float, rng: np.random.Generator) -> np.ndarray | None:
    if a is None or a.dtype.kind in "iub" or not size:
        return a
    with np.errstate(all="ignore"):
        return a * (1 + size * rng.uniform(-1, 1, a.shape))


def _settle(r: np.ndarray, d: DType, size: float, rng: np.random.Generator | None) -> np.ndarray:
    """A result in its own range, with rounding errors of `size`."""
    if not d.is_float:
        return r.astype(d.numpy, copy=False)
    r = r.astype(np.float64)
    if size and rng is not None:
        with np.errstate(all="ignore"):
            r = r * (1 + size * rng.uniform(-1, 1, r.shape)) + _TINY[d.name] * rng.uniform(-1, 1, r.shape) * (r != 0)
    return np.where(np.abs(r) > _MAX[d.name] * (1 + _EPS[d.name]), np.copysign(np.inf, r), r)


def terms(n: Node) -> float:
    """How many terms each sum of a node has, as far as shapes tell: inputs' elements for each output's element."""
    sizes = [v.type for v in n.operands]
    out = max(n.outputs[0].type.size, 1)
    if n.op == "matmul":
        return float(sizes[0].shape[-1])
    if n.op.startswith("conv"):
        return float(max(sizes[1].size, 1))
    if n.op in ("cumsum", "cumprod", "softmax", "log_softmax", "layer_norm", "lrn"):
        return float(max(max(n.outputs[0].type.shape, default=1), 1) ** (2 if n.op == "layer_norm" else 1))
    if n.op == "winograd_multiply":
        return float(sizes[1].shape[-1])
    if n.op.startswith("winograd"):
        return 36.0  # a sum of six terms, each a sum of six
    if n.op == "grid_sample":
        return 16.0  # neighbours of a bicubic point
    return float(max(1.0, max((t.size for t in sizes), default=1) / out))
