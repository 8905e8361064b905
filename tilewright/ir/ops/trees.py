"""Decision forests: one op for all of them; `ir/forest.py` says what its arrays mean.

    %y = tree_ensemble(%x, @nodes, @threshold, @words, @trees, @values, @base) : f64[8,1]

Native code comes from `compiler/passes/trees.py`, which replaces the op by one of the engines in `tree_engines.py`; its own
kernel serves forests that are not known when the model is compiled.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..forest import CATEGORICAL, DEFAULT_LEFT, MEMBER, ZERO, Field, Forest, MissingKind, predict
from ..graph import Attrs
from ..op import Op, Sample, register
from ..types import F32, F64, I32, U32, TensorType


@register
class TreeEnsemble(Op):
    """y[n, c] = base[c] + sum over the trees of the values of the leaves that row n reaches, in order."""

    name = "tree_ensemble"

    def infer(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        x, nodes, threshold, words, trees, values, base = (t or TensorType(F32, ()) for t in ins)
        good = (x.rank == 2 and x.dtype in (F32, F64) and threshold == TensorType(x.dtype, nodes.shape[:1])
                and nodes == TensorType(I32, (*nodes.shape[:1], len(Field))) and words.dtype == U32 and words.rank == 1
                and trees == TensorType(I32, (*trees.shape[:1], 2)) and values.rank == 2 and base.rank == 1
                and values.dtype == base.dtype and values.dtype in (F32, F64, I32) and values.shape[1] <= base.shape[0])
        if not good:
            raise self.fail(f"the arrays {ins} are no forest; see tilewright/ir/forest.py")
        return (TensorType(values.dtype, (x.shape[0], base.shape[0])),)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        x, *arrays = (a for a in ins if a is not None)
        return (predict(x, Forest(*arrays)),)

    def kernel(self, attrs: Attrs, *ins: TensorType | None) -> Callable[..., None] | None:
        return _kernel  # pyright: ignore[reportReturnType]

    def samples(self) -> Iterable[Sample]:
        for seed, dtype in enumerate((np.float32, np.float64)):
            rng = np.random.default_rng(seed)
            f = random_forest(rng, np.dtype(dtype), trees=5, leaves=7, features=4, width=1 + seed, columns=3)
            yield Sample((random_rows(rng, 9, 4, np.dtype(dtype)), *f.arrays))


def _kernel(x, nodes, threshold, words, trees, values, base, out):  # noqa: ANN001, ANN202  (numba)
    for i in range(x.shape[0]):
        for c in range(base.shape[0]):
            out[i, c] = base[c]
        for t in range(trees.shape[0]):
            at = trees[t, 0]
            while at >= 0:
                v, kind = x[i, nodes[at, 0]], nodes[at, 3]
                if kind & 8:
                    count = nodes[at, 5]
                    if v != v:  # noqa: PLR0124
                        word, bit = count + 1, 0
                    elif -1 < v < 2147483520.0:
                        code = int(v)
                        word, bit = min(code >> 5, count), code & 31
                    else:
                        word, bit = count, 31
                    left = (words[nodes[at, 4] + word] >> bit) & 1 == 1
                elif kind & 16:
                    left = v != v and (kind & 4) != 0  # noqa: PLR0124
                    for m in words[nodes[at, 4]:nodes[at, 4] + nodes[at, 5]].view(x.dtype):
                        left = left or v == m
                else:
                    missing = kind & 3
                    if v != v and missing != 1:  # noqa: PLR0124
                        v = x.dtype.type(0)
                    if (missing == 1 and v != v) or (missing == 2 and abs(v) <= 1.0000000180025095e-35):  # noqa: PLR0124
                        left = (kind & 4) != 0
                    else:
                        left = v <= threshold[at]
                at = nodes[at, 1] if left else nodes[at, 2]
            for c in range(values.shape[1]):
                out[i, trees[t, 1] + c] += values[~at, c]
    return 0


assert (CATEGORICAL, DEFAULT_LEFT, MEMBER, int(MissingKind.NAN), int(MissingKind.ZERO), ZERO) == (8, 4, 16, 1, 2, 1.0000000180025095e-35)


# -- for tests ---------------------------------------------------------------------------------------------------------
def random_forest(rng: np.random.Generator, dtype: np.dtype, trees: int, leaves: int, features: int, width: int = 1, columns: int = 1,
                  values: np.dtype | None = None, steps: int = 0, unbalanced: bool = False) -> Forest:
    """A forest with every kind of node and some trees of one leaf. `steps`: thresholds are multiples of 1 / steps."""
    nodes: list[list[int]] = []
    words: list[int] = []
    roots, n_leaves = [], 0
    for t in range(trees):
        size = 1 if t % 4 == 3 else max(1, leaves - int(rng.integers(0, 3)))
        open_ends: list[tuple[int, int]] = [(-1, 0)]  # (node, side) that wait for a child
        for _ in range(size - 1):
            parent, side = open_ends.pop(-1 if unbalanced else int(rng.integers(len(open_ends))))
            here = len(nodes)
            nodes.append(_random_node(rng, features, words, dtype))
            if parent >= 0:
                nodes[parent][1 + side] = here
            else:
                roots.append(here)
            open_ends += [(here, 0), (here, 1)]
        for parent, side in open_ends:
            if parent >= 0:
                nodes[parent][1 + side] = ~n_leaves
            else:
                roots.append(~n_leaves)
            n_leaves += 1
    threshold = rng.standard_normal(len(nodes))
    if steps:
        threshold = np.round(threshold * steps) / steps
    if len(threshold) > 3:
        threshold[:3] = np.nan, np.inf, -np.inf
    kind = values or dtype
    made = rng.integers(0, 99, (n_leaves, width)) if kind.kind == "i" else rng.standard_normal((n_leaves, width))
    where = np.stack([np.array(roots), rng.integers(0, columns - width + 1, trees)], 1)
    return Forest(np.array(nodes, np.int32).reshape(-1, len(Field)), threshold.astype(dtype), np.array(words or [0], np.uint32),
                  where.astype(np.int32), made.astype(kind), np.arange(columns).astype(kind))


def _random_node(rng: np.random.Generator, features: int, words: list[int], dtype: np.dtype) -> list[int]:
    kind = int(rng.choice([0, 1, 1 | DEFAULT_LEFT, 2, 2 | DEFAULT_LEFT, CATEGORICAL, MEMBER | 1, MEMBER | 1 | DEFAULT_LEFT]))
    first, count = len(words), 0
    if kind & MEMBER:
        numbers = np.unique(rng.choice([-1.0, -0.5, 0, 1e-36, 2.5, 3, 40, np.inf], 3)).astype(dtype).view(np.uint32)
        words += numbers.tolist()
        return [int(rng.integers(features)), 0, 0, kind, first, len(numbers)]
    if kind == CATEGORICAL:
        count = int(rng.integers(1, 3))
        words += [int(w) for w in rng.integers(0, 1 << 32, count)] + [int(rng.choice([0, 0xFFFFFFFF])) for _ in range(2)]
    return [int(rng.integers(features)), 0, 0, kind, first, count]


def random_rows(rng: np.random.Generator, rows: int, features: int, dtype: np.dtype) -> np.ndarray:
    """Values with NaN, infinities, zeros, tiny numbers, categories and what is none among them."""
    x = rng.standard_normal((rows, features))
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e-36, -1e-36, 3, 40, 70, -1, -0.5, 3e9, 2.5])
    some = rng.random(x.shape) < 0.5
    x[some] = rng.choice(special, int(some.sum()))
    return x.astype(dtype)
