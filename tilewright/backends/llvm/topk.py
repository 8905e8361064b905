"""Code for `topk` along contiguous rows of floats, for few of many: vectors of elements are compared with the k-th best so far.

    for row:
      for j in 0 … k-1:  insert x[j] into values[0 … j]
      for j in k … n-1 by vectors:
        closer = bits of x[j …] better than values[k - 1], or NaN in either
        for p in closer, in order:  if x[j + p] stands before values[k - 1]: insert it, behind equal ones

Other cases (integers, other axes, larger k) are the op's own loops.
"""
from __future__ import annotations

from collections.abc import Callable

from ...ir.ops.irregular import TopKAttrs
from ...ir.types import F32, F64, TensorType
from ..target import Target
from .code import Code

MOST = 64  # that are kept in order by insertion


def fits(a: TopKAttrs, x: TensorType) -> bool:
    return x.dtype in (F32, F64) and a.axis == x.rank - 1 and 1 <= a.k <= MOST and 2 * a.k <= x.shape[-1] and x.size > 0


def seconds(a: TopKAttrs, x: TensorType) -> float:
    """About; each row has its k first elements to put in order, and some that follow."""
    return x.size * 0.15e-9 + x.size // x.shape[-1] * a.k * 20e-9


def insert(c: Code, kind: str, values: str, order: str, place: str | int, v: str, position: str,
           before: Callable[[str, str], str]) -> None:
    """v and its position into sorted `values` and `order` at `place` or before it. before(a, b): an i1."""
    at = c.variable("i64", 0)
    at.set(f"{place}")

    def further() -> str:
        i = at.get()
        last = c.call("i64", "llvm.smax.i64", ("i64", c("sub i64 {}, 1", i)), ("i64", 0))
        return c("and i1 {}, {}", c("icmp sgt i64 {}, 0", i), before(v, c.element(kind, values, last)))
    with c.loop_while(further):
        i = at.get()
        last = c("sub i64 {}, 1", i)
        c.store(kind, c.element(kind, values, last), c.at(kind, values, i))
        c.store("i64", c.element("i64", order, last), c.at("i64", order, i))
        at.set(last)
    c.store(kind, v, c.at(kind, values, at.get()))
    c.store("i64", position, c.at("i64", order, at.get()))


def lanes_below(c: Code, compare: str, kind: str, lanes: int, found: list[str], bound: str) -> str:
    """An i64 with bit p set where element p of the vectors `found` compares with `bound` as `compare` says."""
    out = "0"
    for u, v in enumerate(found):
        hit = c("bitcast <{0} x i1> {1} to i{0}", lanes, c("fcmp {} <{} x {}> {}, {}", compare, lanes, kind, v, bound))
        wide = c("zext i{} {} to i64", lanes, hit)
        out = c("or i64 {}, {}", out, c("shl i64 {}, {}", wide, u * lanes)) if u else wide
    return out


def each_bit(c: Code, bits: str, do: Callable[[str], None]) -> None:
    """do(p) for the bits p that are set, from the lowest on."""
    left = c.variable("i64", 0)
    left.set(bits)
    with c.loop_while(lambda: c("icmp ne i64 {}, 0", left.get())):
        now = left.get()
        p = c.call("i64", "llvm.cttz.i64", ("i64", now), ("i1", "true"))
        left.set(c("and i64 {}, {}", now, c("sub i64 {}, 1", now)))
        do(p)


def emit_topk(symbol: str, a: TopKAttrs, x: TensorType, target: Target) -> str:
    """LLVM IR text."""
    kind, lanes, k, n = "float" if x.dtype == F32 else "double", target.vector_bytes // x.dtype.bytes, a.k, x.shape[-1]
    vectors = 64 // lanes if lanes > 8 else 4
    step, vector = vectors * lanes, f"<{lanes} x {kind}>"
    c = Code(symbol, ("ptr x", "ptr values", "ptr order", "ptr workspace", "i64 begin", "i64 end", "ptr ctx"))

    def before(v: str, w: str) -> str:
        """NaN counts as larger than every number."""
        ahead, (nan, number) = c("fcmp {} {} {}, {}", "ogt" if a.largest else "olt", kind, v, w), (v, w) if a.largest else (w, v)
        odd = c("and i1 {}, {}", c("fcmp uno {} {}, {}", kind, nan, nan), c("fcmp ord {} {}, {}", kind, number, number))
        return c("or i1 {}, {}", ahead, odd)

    with c.loop("%end", "%begin") as row:
        source = c.at(kind, "%x", c("mul i64 {}, {}", row, n))
        values, order = (c.at(t, base, c("mul i64 {}, {}", row, k)) for t, base in ((kind, "%values"), ("i64", "%order")))

        def offer(j: str) -> None:
            v = c.element(kind, source, j)
            with c.when(before(v, c.element(kind, values, k - 1))):
                insert(c, kind, values, order, k - 1, v, j, before)
        with c.loop(k) as j:
            insert(c, kind, values, order, j, c.element(kind, source, j), j, before)
        whole = k + (n - k) // step * step
        with c.loop(whole, k, step) as j:
            here = c.at(kind, source, j)
            found = [c.load(vector, c.at(kind, here, u * lanes), x.dtype.bytes) for u in range(vectors)]
            bound = c.splat(lanes, kind, c.element(kind, values, k - 1))
            bits = lanes_below(c, "ugt" if a.largest else "ult", kind, lanes, found, bound)
            each_bit(c, bits, lambda p, j=j: offer(c("add i64 {}, {}", j, p)))
        with c.loop(n, whole) as j:
            offer(j)
    return c.text()
