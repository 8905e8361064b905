"""Index normal forms: values never change, reshapes of contiguous memory become strides."""
from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.affine import address, affine, bounds, floordiv, linear, mod, range_of, simplify, to_expr
from tilewright.ir.expr import Axis, Buffer, Call, Const, Expr, Var, wrap
from tilewright.ir.types import F32, I64, contiguous_strides

AXES = (Axis("i", 3), Axis("j", 4), Axis("k", 6))


def evaluate(e: Expr, env: dict[Axis, int]) -> int:
    match e:
        case Const(v, _):
            return int(v)
        case Var(a, _):
            return env[a]
        case Call(fn, args, _):
            x = [evaluate(a, env) for a in args]
            return {"add": lambda: x[0] + x[1], "sub": lambda: x[0] - x[1], "mul": lambda: x[0] * x[1], "neg": lambda: -x[0],
                    "floordiv": lambda: x[0] // x[1], "mod": lambda: x[0] % x[1], "min": lambda: min(x), "lt": lambda: x[0] < x[1]}[fn]()
    raise AssertionError(e)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> Expr:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from([*map(Var, AXES), wrap(draw(st.integers(-5, 9)), I64)]))
    a = draw(expressions(depth=depth - 1))
    fn = draw(st.sampled_from(["add", "sub", "mul", "floordiv", "mod", "min"]))
    if fn in ("floordiv", "mod", "mul"):
        c = draw(st.integers(1, 12))
        return {"floordiv": a // c, "mod": a % c, "mul": a * c}[fn]
    b = draw(expressions(depth=depth - 1))
    return {"add": lambda: a + b, "sub": lambda: a - b, "min": lambda: Call("min", (a, b), I64)}[fn]()


@settings(max_examples=300, deadline=None)
@given(expressions())
def test_normal_form_keeps_values_and_bounds(e: Expr) -> None:
    form = linear(e)
    back, r = to_expr(form), bounds(form)
    assert linear(back).const == form.const or any("Opaque" in str(a) for a, _ in form.terms)
    for point in itertools.product(*(range(a.extent) for a in AXES)):
        env = dict(zip(AXES, point, strict=True))
        v = evaluate(e, env)
        assert evaluate(back, env) == v
        assert r is None or r[0] <= v <= r[1]


def reshaped(src: tuple[int, ...], dst: tuple[int, ...], strides: tuple[int, ...] = ()):
    """The address of reshape(x: src) -> dst as a function of the axes of dst."""
    axes = tuple(Axis(f"i{k}", n) for k, n in enumerate(dst))
    flat = sum((Var(a) * s for a, s in zip(axes, contiguous_strides(dst), strict=True)), wrap(0, I64))
    index = tuple((flat // s) % n for s, n in zip(contiguous_strides(src), src, strict=True))
    return axes, address(Buffer("x", F32, src, strides)[index])


@pytest.mark.parametrize("src, dst", [((6, 4), (24,)), ((24,), (2, 3, 4)), ((2, 3, 4), (4, 6)), ((4, 6), (2, 3, 4)),
                                      ((1, 12, 5), (3, 4, 1, 5)), ((7, 2, 3), (6, 7)), ((2, 3, 4, 5), (10, 12))])
def test_reshape_of_contiguous_memory_is_strides(src: tuple[int, ...], dst: tuple[int, ...]) -> None:
    axes, got = reshaped(src, dst)
    assert dict(got.terms) == {a: s for a, s in zip(axes, contiguous_strides(dst), strict=True) if a.extent > 1}


def test_reshape_of_strided_memory_is_strides_only_where_dims_stay_whole() -> None:
    axes, got = reshaped((8, 6), (8, 2, 3), (100, 1))
    assert dict(got.terms) == {axes[0]: 100, axes[1]: 3, axes[2]: 1}
    assert affine(to_expr(reshaped((8, 6), (48,), (100, 1))[1])) is None


def test_div_mod_by_ranges() -> None:
    i, j, _ = map(Var, AXES)
    assert affine((i * 4 + j) // 4) == ({AXES[0]: 1}, 0)
    assert affine((i * 4 + j) % 4) == ({AXES[1]: 1}, 0)
    assert affine((i * 8 + j * 2 + 1) // 2) == ({AXES[0]: 4, AXES[1]: 1}, 0)
    assert range_of(i - j) == (-3, 2)
    assert floordiv(linear(i * 4 + j), 8) == floordiv(linear(i), 2)
    assert mod(linear(i * 4 + j), 8) == linear((i % 2) * 4 + j)


def test_guards_that_always_hold_disappear() -> None:
    i, j, _ = map(Var, AXES)
    x = Buffer("x", F32, (3, 4))
    assert simplify(x.at((i, j), (i >= 0) & (j < 4), 0.0)).where is None  # type: ignore[attr-defined]
    assert simplify(x.at((i, j - 1), j >= 1, 0.0)).where is not None  # type: ignore[attr-defined]
    gone = simplify(x.at((i, j), j >= 4, 2.0))
    assert isinstance(gone, Const) and gone.value == 2.0
