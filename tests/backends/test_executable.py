"""Calling: every way to pass arguments, and every way to pass them wrong."""
from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.backends.models import arguments, executable, expected, instance
from tilewright.backends.arguments import Data, tensor
from tilewright.backends.executable import Executable, Fixed, Runnable
from tilewright.backends.instance import Instance, Preparation
from tilewright.backends.memory import _ctypes_data, _data_pointer
from tilewright.backends.target import Target
from tilewright.errors import InputError, TargetError
from tilewright.ir.text import parse_graph
from tilewright.ir.types import TensorSpec

N = 7
OTHER = Target.parse("aarch64" if Target.host().arch == "x86_64" else "x86-64")
F32 = np.dtype(np.float32)


@pytest.fixture
def exe() -> Executable:
    return executable(N)


def test_call_and_run(exe: Executable) -> None:
    x, k = arguments(N)
    keep = x.copy()
    y = exe(x, k)
    np.testing.assert_array_equal(y, expected(x, k))
    assert isinstance(y, np.ndarray) and y is not exe(x, k) and np.array_equal(x, keep)
    assert list(exe.run({"k": k, "x": x})) == ["y"]
    assert "x: float32[7]" in repr(exe)


@pytest.mark.parametrize("make", [
    lambda x: np.repeat(x, 3)[::3], lambda x: x[::-1].copy()[::-1], lambda x: x.astype(">f4"), lambda x: misaligned(x),
    lambda x: frozen(x), lambda x: list(map(float, x)), lambda x: [int(v) for v in x], lambda x: tuple(x.tolist()),
    lambda x: x.view(Sub), lambda x: ArrayLike(x), lambda x: Capsule(x)])
def test_arguments_that_are_converted(exe: Executable, make) -> None:
    x, k = arguments(N)
    np.testing.assert_array_equal(exe(make(x), k), expected(x, k))
    np.testing.assert_array_equal(exe(x, k.astype(">i8")), expected(x, k))
    np.testing.assert_array_equal(exe(x, k.tolist()), expected(x, k))


class Sub(np.ndarray):
    pass


class ArrayLike:
    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.a


class Capsule(ArrayLike):
    def __dlpack__(self, **options: object) -> object:
        return self.a.__dlpack__(**options)  # pyright: ignore

    def __dlpack_device__(self) -> object:
        return self.a.__dlpack_device__()


def misaligned(x: np.ndarray) -> np.ndarray:
    block = np.zeros(x.nbytes + 1, np.uint8)
    block[1:] = x.view(np.uint8)
    return block[1:].view(x.dtype)


def frozen(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y.flags.writeable = False
    return y


X, K = arguments(N)


@pytest.mark.parametrize(("args", "message"), [
    ((X,), r"1 inputs were given, expected 2: x: float32\[7\], k: int64"), ((X, K, K), r"3 inputs"),
    ((X.astype(np.float64), K), r"'x' has dtype float64.*float32.*astype"),
    ((X, K.astype(np.int32)), r"'k' has dtype int32"), ((X[:6], K), r"'x' has shape \[6\], expected \[7\]"),
    ((X[None], K), r"2 dimensions"), ((X, X.tolist()), r"float64 values cannot become int64"), (("text", K), r"is a str"),
    ((None, K), r"is a NoneType"), ((X.astype(object), K), r"dtype object"), (([[1.0], [2.0, 3.0]], K), r"no array"),
    ((X.astype(complex), K), r"complex"), ((X, [2**70] * N), r"object|range|loss"),
    ((np.float32(1), K), r"0 dimensions"), ((1.0, K), r"0 dimensions")])
def test_arguments_that_are_refused(exe: Executable, args: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        exe(*args)


@pytest.mark.parametrize(("given", "message"), [
    ({"x": X}, r"'k' is missing"), ({"x": X, "k": K, "z": X}, r"no input 'z'; the inputs are x, k"), ({}, r"'x' is missing")])
def test_names_that_are_refused(exe: Executable, given: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        exe.run(given)


@pytest.mark.parametrize("bad", [4, -1, 2**62])
def test_index_out_of_range(exe: Executable, bad: int) -> None:
    with pytest.raises(InputError, match=r"out of range"):
        exe(X, np.array([0, 1, bad, 0, 0, 0, 0]))
    np.testing.assert_array_equal(exe(X, K), expected(X, K))


def test_nan_and_inf_pass(exe: Executable) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e38, -1e-45], np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(exe(x, K), expected(x, K))


def test_zero_size() -> None:
    y = executable(0)(np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert isinstance(y, np.ndarray) and y.shape == (0,)


def test_run_into(exe: Executable) -> None:
    y = np.zeros(N, np.float32)
    exe.run_into([y], X, K)
    np.testing.assert_array_equal(y, expected(X, K))
    wide = np.zeros(2 * N, np.float32)
    exe.run_into(wide[::2], X, K)
    np.testing.assert_array_equal(wide[::2], expected(X, K))
    assert not wide[1::2].any()
    swapped = np.zeros(N, ">f4")
    exe.run_into(swapped, X, K)
    np.testing.assert_array_equal(swapped, expected(X, K))


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_run_into_overlapping_inputs(exe: Executable, shift: int) -> None:
    block = np.zeros(2 * N, np.float32)
    x, y = block[:N], block[shift:shift + N]
    x[:] = X
    want = expected(X, K)
    exe.run_into([y], x, K)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize(("y", "message"), [
    (np.zeros(N), r"must be float32\[7\], got float64"), (np.zeros(6, np.float32), r"got float32\[6\]"), (frozen(X), r"writeable"),
    ([], r"0 output arrays"), ([[1.0]], r"writeable NumPy array")])
def test_run_into_refuses(exe: Executable, y: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        exe.run_into(y, X, K)  # pyright: ignore
    with pytest.raises(InputError, match=message):
        exe.run_into(y, list(map(float, X)), K)  # pyright: ignore


def test_many_threads_at_once() -> None:
    exe, wrong = executable(5000), []
    args = [(np.full(5000, t, np.float32), np.full(5000, t % 4)) for t in range(8)]

    def work(t: int) -> None:
        want = expected(*args[t])
        wrong.extend(1 for _ in range(300) if not np.array_equal(exe(*args[t]), want))  # pyright: ignore
    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert len(exe.instances()[0]._frames) <= 8


# -- weights -----------------------------------------------------------------------------------------------------------
def test_update_weights(exe: Executable) -> None:
    w = np.arange(N, dtype=np.float32)
    exe.update_weights({"w": w})
    np.testing.assert_array_equal(exe(X, K), expected(X, K, w))
    before = w.copy()
    w[:] = 0
    np.testing.assert_array_equal(exe(X, K), expected(X, K, before))
    exe.update_weights({"w": [1.5] * N})
    np.testing.assert_array_equal(exe(X, K), expected(X, K))


@pytest.mark.parametrize(("new", "message"), [
    ({"w": np.zeros(N + 1, np.float32)}, r"'w' has shape \[8\], expected \[7\]"), ({"w": np.zeros(N)}, r"'w' has dtype float64"),
    ({"W": np.zeros(N, np.float32)}, r"no weight 'W'"), ({"shape": np.zeros(1)}, r"'shape' cannot be updated.*part of the compiled code")])
def test_weights_that_are_refused_change_nothing(exe: Executable, new: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        exe.update_weights({"w": np.zeros(N, np.float32), **new})
    np.testing.assert_array_equal(exe(X, K), expected(X, K))


def test_weights_that_need_no_preparation_are_kept_once() -> None:
    graph = parse_graph("graph @p(%w: f32[3]) -> f32[3] {\n  return %w\n}")
    w = np.ones(3, np.float32)
    p, (a,) = Preparation(graph, {"w": w}).evaluate()
    assert p.arrays["w"] is a is not w and a.ctypes.data % 64 == 0


@pytest.mark.parametrize("make", [lambda: executable(N), lambda: symbolic(Symbolic()), lambda: executable(N, OTHER)])
def test_dropped_executables_are_freed_at_once(make: Callable[[], Executable]) -> None:
    gc.disable()
    try:
        exe = make()
        if exe.target is not OTHER:
            exe(X, K)
        refs = [weakref.ref(x) for x in (exe, *exe.instances())]
        del exe
        assert [r() for r in refs] == [None, None]
    finally:
        gc.enable()


# -- symbolic shapes, static values ------------------------------------------------------------------------------------
class Symbolic:
    """Compiles for each length. With `static`, by the values of k too."""

    def __init__(self, static: bool = False) -> None:
        self.made: list[int] = []
        self.static_inputs: frozenset[str] = frozenset()
        self.adopt: Callable[[Instance], None]
        self._static = frozenset({"k"}) if static else frozenset()

    def specialise(self, data: Sequence[Data]) -> Runnable:
        self.static_inputs = self._static
        assert isinstance(data[0], np.ndarray)
        self.made.append(data[0].shape[0])
        made = instance(data[0].shape[0])
        self.adopt(made)
        return Fixed(made)

    def source(self) -> tuple[bytes, dict[str, str | int | bool]]:
        return b"model", {"opset": 17}


def symbolic(model: Symbolic) -> Executable:
    specs = [TensorSpec("x", ("n",), F32), TensorSpec("k", ("n",), np.dtype(np.int64))]
    return Executable(specs, [TensorSpec("y", ("n",), F32)], model, Target.host(), "any")


def test_symbolic_shapes() -> None:
    model = Symbolic()
    exe = symbolic(model)
    for n in (3, 5, 3, 0, 5, 3):
        x, k = arguments(n)
        np.testing.assert_array_equal(exe(x, k), expected(x, k))
        exe.run_into(y := np.empty(n, np.float32), x, k)
        np.testing.assert_array_equal(y, expected(x, k))
    assert model.made == [3, 5, 0]
    with pytest.raises(InputError, match=r"'n' is 7 in input 'x' and 5 in input 'k'"):
        exe(X, K[:5])
    assert exe.explain().count("compiled for") == 3


def test_weights_reach_what_is_compiled_later() -> None:
    exe = Executable([TensorSpec("x", ("n",), F32), TensorSpec("k", ("n",), np.dtype(np.int64))], [TensorSpec("y", ("n",), F32)],
                     Symbolic(), Target.host(), weights={"w": executable(N).instances()[0].plan.weights[0][1]})
    exe.update_weights({"w": np.zeros(N, np.float32)})
    np.testing.assert_array_equal(np.asarray(exe(X, K)), 0)


def test_static_values() -> None:
    model = Symbolic(static=True)
    exe = symbolic(model)
    for k in (K, K, K[::-1].copy(), K):
        np.testing.assert_array_equal(exe(X, k), expected(X, k))
    assert model.made == [N, N]


def test_specialised_once_by_racing_threads() -> None:
    model = Symbolic()
    exe = symbolic(model)
    threads = [threading.Thread(target=exe, args=(X, K)) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert model.made == [N]


# -- the rest ------------------------------------------------------------------------------------------------------------
def test_explain(exe: Executable, tmp_path: Path) -> None:
    text = exe.explain()
    assert "gather" in text and "k_mul" in text and "arena" in text and "a note" in text and str(text) == text
    text.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") and "k_mul" in page and "http" not in page


def test_other_target_does_not_run() -> None:
    with pytest.raises(TargetError, match=r"does not run on this machine"):
        executable(N, OTHER)(X, K)


def test_data_pointer() -> None:
    for a in (np.zeros(3), np.zeros(0), np.zeros((4, 4))[1:, 2:], np.float32(3) * np.ones(2)):
        assert _data_pointer(a) == _ctypes_data(a)


def test_bf16_and_torch() -> None:
    spec = TensorSpec("x", (3,), np.dtype(ml_dtypes.bfloat16))
    a = np.array([1, 2, 3], ml_dtypes.bfloat16)
    assert tensor(spec, a) is a
    np.testing.assert_array_equal(tensor(spec, [1.0, 2.0, 3.0]), a)
    if find_spec("torch"):
        import torch  # pyright: ignore[reportMissingImports]
        np.testing.assert_array_equal(tensor(spec, torch.tensor([1, 2, 3], dtype=torch.bfloat16)), a)
        want = TensorSpec("x", (3,), F32)
        np.testing.assert_array_equal(tensor(want, torch.ones(3, requires_grad=True)), np.ones(3, np.float32))
        with pytest.raises(InputError, match=r"main memory"):
            tensor(want, torch.ones(3, device="meta"))
