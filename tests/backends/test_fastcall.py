"""Native calls: what they take, what they leave to Python, and that they leave nothing behind."""
from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.backends.kernels import binary_f32
from tests.backends.models import arguments, executable, expected
from tilewright.backends import fastcall
from tilewright.backends.arguments import Data
from tilewright.backends.executable import Executable, Fixed, Runnable
from tilewright.backends.instance import Instance
from tilewright.backends.llvm import pycall
from tilewright.backends.llvm.elf import combine
from tilewright.backends.llvm.entry import emit_entry
from tilewright.backends.llvm.jit import compile_ir
from tilewright.backends.llvm.linker import shared_library
from tilewright.backends.plan import KernelCall, Plan, Slot
from tilewright.backends.target import Target
from tilewright.config import read
from tilewright.errors import InputError
from tilewright.ir.types import F32, TensorSpec, TensorType

HOST = Target.host()
OPS = ("fadd", "fsub", "fmul", "fdiv")
pytestmark = pytest.mark.skipif(fastcall.code() is None, reason="this interpreter takes slow calls")


def arithmetic(shape: tuple[int, ...] = (4, 4), outputs: int = 1, size: int = 0, arena: int = 0) -> Executable:
    """x + y, x - y, … of f32 tensors. `size`: bytes that a kernel claims to touch; 0 is not known, so the GIL is released."""
    t, n = TensorType(F32, shape), int(np.prod(shape))
    calls = tuple(KernelCall(f"k{k}", (Slot("input"), Slot("input", 1), Slot("output", k)), bytes=size) for k in range(outputs))
    plan = Plan((("x", t), ("y", t)), tuple((f"z{k}", t) for k in range(outputs)), (), arena, calls)
    code = [compile_ir(text, HOST) for text in (*(binary_f32(f"k{k}", n, OPS[k]) for k in range(outputs)), emit_entry(plan))]
    specs = {name: TensorSpec(name, shape, np.dtype(np.float32)) for name, _ in (*plan.inputs, *plan.outputs)}
    return Executable([specs["x"], specs["y"]], [specs[name] for name, _ in plan.outputs], Instance(plan, code, HOST), HOST, "arithmetic")


@pytest.fixture
def native_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails calls that are left to Python."""
    def unexpected(*_: object) -> bool:
        raise AssertionError("this call is not native")
    monkeypatch.setattr(Instance, "fits", unexpected)
    monkeypatch.setattr("tilewright.backends.executable.convert", unexpected)


X, Y = np.arange(16, dtype=np.float32).reshape(4, 4), np.full((4, 4), 3, np.float32)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.usefixtures("native_only")
def test_results(size: int) -> None:
    exe = arithmetic(size=size)
    got = exe(X, Y)
    assert type(got) is np.ndarray and got.dtype is np.dtype(np.float32) and got.flags.owndata and got.flags.writeable
    np.testing.assert_array_equal(got, X + Y)
    assert got is not exe(X, Y) and sys.getrefcount(got) == 2
    out = np.empty_like(X)
    assert exe.run_into(out, X, Y) is None
    np.testing.assert_array_equal(out, X + Y)


@pytest.mark.usefixtures("native_only")
def test_several_results() -> None:
    exe = arithmetic(outputs=4)
    got = exe(X, Y)
    assert type(got) is tuple and len(got) == 4
    want = X + Y, X - Y, X * Y, X / Y
    outs = [np.empty_like(X) for _ in OPS]
    exe.run_into(outs, X, Y)
    exe.run_into(more := tuple(np.empty_like(X) for _ in OPS), X, Y)
    for results in (got, outs, more):
        np.testing.assert_array_equal(results, want)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 1, 2, 2)])
@pytest.mark.usefixtures("native_only")
def test_shapes(shape: tuple[int, ...]) -> None:
    x = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    exe, out = arithmetic(shape), np.empty_like(x)
    got = exe(x, x)
    exe.run_into(out, x, x)
    for y in (got, out):
        assert isinstance(y, np.ndarray) and y.shape == shape
        np.testing.assert_array_equal(y, x + x)


class Sub(np.ndarray):
    pass


def frozen(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y.flags.writeable = False
    return y


@pytest.mark.parametrize("make", [
    lambda x: x[::-1].copy()[::-1], lambda x: x.T.copy().T, lambda x: x.astype(">f4"), lambda x: x.tolist(), lambda x: x.view(Sub),
    lambda x: x.astype(np.dtype(np.float32, metadata={"unit": "m"})), lambda x: Wrapper(x)])
def test_what_python_converts(make: Callable[[np.ndarray], object]) -> None:
    exe = arithmetic()
    np.testing.assert_array_equal(exe(make(X), Y), X + Y)
    np.testing.assert_array_equal(exe(X, make(Y)), X + Y)
    exe.run_into(out := np.empty_like(X), make(X), make(Y))
    np.testing.assert_array_equal(out, X + Y)


class Wrapper:
    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.a


@pytest.mark.usefixtures("native_only")
def test_read_only_inputs() -> None:
    np.testing.assert_array_equal(arithmetic()(frozen(X), frozen(Y)), X + Y)


@pytest.mark.parametrize(("args", "message"), [
    ((), r"0 inputs were given, expected 2"), ((X,), r"1 inputs"), ((X, Y, X), r"3 inputs"),
    ((X, Y.astype(np.float64)), r"'y' has dtype float64"),
    ((X.view(np.int32), Y), r"'x' has dtype int32"), ((X, Y[:3]), r"'y' has shape \[3,4\]"), ((X.reshape(16), Y), r"1 dimensions"),
    ((X[None], Y), r"3 dimensions"), ((X, None), r"NoneType"), ((X, "y"), r"is a str"), ((X, Y.astype("m8[s]")), r"dtype")])
def test_refused(args: tuple[object, ...], message: str) -> None:
    exe = arithmetic()
    for _ in range(3):
        with pytest.raises(InputError, match=message):
            exe(*args)
        with pytest.raises(InputError, match=message):
            exe.run_into(np.empty_like(X), *args)
    np.testing.assert_array_equal(exe(X, Y), X + Y)


def test_very_many_arguments() -> None:
    with pytest.raises(InputError, match=r"2000000 inputs"):
        arithmetic()(*[X] * 2_000_000)


def test_keywords() -> None:
    exe = arithmetic()
    with pytest.raises(InputError, match=r"by position, got the keyword 'y'.*exe\.run"):
        exe(X, y=Y)
    with pytest.raises(InputError, match=r"by position"):
        exe(x=X, y=Y)
    with pytest.raises(TypeError, match=r"outputs"):
        exe.run_into()  # pyright: ignore
    with pytest.raises(InputError, match=r"0 inputs"):
        exe.run_into(outputs=np.empty_like(X))


@pytest.mark.parametrize("outs", [
    np.empty((4, 4)), np.empty((4, 3), np.float32), np.empty(16, np.float32), frozen(X), [], [X.copy(), X.copy()], [[1.0]], None, (), 3])
def test_run_into_refuses(outs: object) -> None:
    with pytest.raises((InputError, TypeError)):
        arithmetic().run_into(outs, X, Y)  # pyright: ignore


def test_run_into_memory_that_overlaps() -> None:
    exe = arithmetic(outputs=2)
    for shift in (0, 1, 15, 16):
        block = np.zeros(48, np.float32)
        x, y = block[:16].reshape(4, 4), block[16:32].reshape(4, 4)
        a, b = block[shift:shift + 16].reshape(4, 4), block[32:].reshape(4, 4)
        x[:], y[:] = X, Y
        exe.run_into((a, b), x, y)
        np.testing.assert_array_equal(a, X + Y)
        np.testing.assert_array_equal(b, X - Y)
    wide = np.zeros((4, 8), np.float32)
    exe.run_into([wide[:, ::2], wide[:, 1::2]], X, Y)
    np.testing.assert_array_equal(wide[:, ::2], X + Y)


# -- nothing is left behind ----------------------------------------------------------------------------------------------
def counts(*things: object) -> list[int]:
    return [sys.getrefcount(x) for x in things]


def failing(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises(InputError):
            call()
    return run


def steady(call: Callable[[], object], things: tuple[object, ...]) -> bool:
    """Whether 1000 calls leave the counts as they were. A leak shows every time; that another thread of this process makes or drops
    arrays and with them holds on their dtype, which all share, or that old garbage goes, does not."""
    call()
    gc.collect()
    before = counts(*things)
    for _ in range(1000):
        call()
    gc.collect()
    return all(abs(y - x) < 200 for x, y in zip(before, counts(*things), strict=True))


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("outputs", [1, 3])
def test_reference_counts(outputs: int, size: int) -> None:
    exe = arithmetic(outputs=outputs, size=size)
    a, b = executable(7), arguments(7)
    wrong = np.full(7, 9)
    outs = [np.empty_like(X) for _ in range(outputs)]
    block, weights = exe.instances()[0].block, a.instances()[0]._weights
    things = X, Y, *outs, outs, exe, block, X.dtype, np.ndarray, InputError, exe.instances()[0], weights, a, *b
    for call in (lambda: exe(X, Y), lambda: exe.run_into(outs, X, Y), lambda: exe.run_into(tuple(outs), X, Y), lambda: a(*b),
                 failing(lambda: exe(X)), failing(lambda: exe(X, y=Y)), failing(lambda: a(b[0], wrong)),
                 lambda: exe(X.tolist(), Y), failing(lambda: exe.run_into(outs, X))):
        assert any(steady(call, things) for _ in range(5))
    none = sys.getrefcount(None)
    for _ in range(2000):
        exe.run_into(outs, X, Y)
    assert abs(sys.getrefcount(None) - none) < 200


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_million_calls(outputs: int) -> None:
    exe, outs = arithmetic(outputs=outputs, size=1), [np.empty_like(X) for _ in range(outputs)]

    def used() -> tuple[int, int]:
        gc.collect()
        return sys.getallocatedblocks(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        exe(X, Y)
    blocks, kilobytes = used()
    for _ in range(1_000_000 // 2):
        exe(X, Y)
        exe.run_into(outs, X, Y)
    more_blocks, more_kilobytes = used()
    assert more_blocks - blocks < 200 and more_kilobytes - kilobytes < 2000


def test_dropped_while_running() -> None:
    exe = arithmetic((1000, 1000))
    x = np.ones((1000, 1000), np.float32)
    gone = weakref.ref(exe.instances()[0])
    results: list[object] = []
    t = threading.Thread(target=lambda f: results.append(f(x, x)), args=(exe,))
    t.start()
    del exe
    t.join()
    del t
    np.testing.assert_array_equal(results[0], x + x)  # pyright: ignore
    assert gone() is None


@pytest.mark.parametrize("outputs", [1, 2])
def test_no_memory_for_the_output(outputs: int) -> None:
    huge, small = TensorType(F32, (1 << 50,)), TensorType(F32, (4,))
    outs = (("s", small), ("h", huge))[-outputs:]
    call = KernelCall("k", (Slot("input"), Slot("input"), Slot("output")), bytes=1)
    plan = Plan((("x", small),), outs, (), 0, (call,))
    i = Instance(plan, [compile_ir(binary_f32("k", 4), HOST), compile_ir(emit_entry(plan), HOST)], HOST)
    f4 = np.dtype(np.float32)
    exe = Executable([TensorSpec("x", (4,), f4)], [TensorSpec(n, t.shape, f4) for n, t in outs], i, HOST)
    x = X[0].copy()
    for _ in range(20):
        with pytest.raises(MemoryError):
            exe(x)
    assert sys.getrefcount(x) == 2 and i._frame is not None and i._frame.record.fields[pycall.Frame.FREE] == 1


# -- threads ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [16, 40_000])
def test_threads_share_an_executable(n: int) -> None:
    exe, wrong = executable(n), []
    args = [(np.full(n, t, np.float32), np.full(n, t % 4)) for t in range(6)]

    def work(t: int) -> None:
        want, out = expected(*args[t]), np.empty(n, np.float32)
        for _ in range(150):
            exe.run_into(out, *args[t])
            wrong.extend([t] * (not np.array_equal(out, want) or not np.array_equal(exe(*args[t]), want)))  # pyright: ignore
            with pytest.raises(InputError, match=r"out of range"):
                exe(args[t][0], args[t][1] + 100)
    threads = [threading.Thread(target=work, args=(t,)) for t in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_weights_change_under_running_calls() -> None:
    exe, n, stop = executable(5000), 5000, threading.Event()
    args, wrong = arguments(n), []
    allowed = [expected(*args, w=w) for w in (1.5, 2.0)]

    def work() -> None:
        while not stop.is_set():
            got = exe(*args)
            wrong.extend([1] * (not any(np.array_equal(got, w) for w in allowed)))  # pyright: ignore
    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for k in range(200):
        exe.update_weights({"w": np.full(n, (1.5, 2.0)[k % 2], np.float32)})
    stop.set()
    for t in threads:
        t.join()
    assert not wrong
    np.testing.assert_array_equal(exe(*args), allowed[1])


def test_long_runs_let_go_of_the_interpreter() -> None:
    size = TensorType(F32, (16,))
    short = KernelCall("k", (), bytes=192, flops=16)
    types = (("x", size),), (("y", size),)
    assert fastcall.estimated_ns(Plan(*types, calls=(short,))) < 100
    for call in (KernelCall("k", (), bytes=10**6), KernelCall("k", (), bytes=100, flops=10**6), KernelCall("k", ())):
        assert fastcall.estimated_ns(Plan(*types, calls=(short, call))) >= 20_000
    assert arithmetic().instances()[0].block[pycall.Block.RELEASE] == 0  # pyright: ignore
    assert arithmetic(size=1).instances()[0].block[pycall.Block.RELEASE] == 1  # pyright: ignore


# -- objects and shapes ------------------------------------------------------------------------------------------------------
class Lengths:
    """A model compiled for each length."""

    static_inputs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.made = 0
        self.adopt: Callable[[Instance], None]

    def specialise(self, data: Sequence[Data]) -> Runnable:
        self.made += 1
        assert isinstance(data[0], np.ndarray)
        i = arithmetic(data[0].shape).instances()
        self.adopt(i[0])
        return Fixed(i[0])

    def source(self) -> None:
        return None


def test_symbolic_shapes() -> None:
    f4, model = np.dtype(np.float32), Lengths()
    exe = Executable([TensorSpec("x", ("n",), f4), TensorSpec("y", ("n",), f4)], [TensorSpec("z", ("n",), f4)], model, HOST)
    for n in (3, 3, 5, 5, 3, 0, 3, 5):
        x = np.arange(n, dtype=f4)
        np.testing.assert_array_equal(exe(x, x), x + x)
        exe.run_into(out := np.empty(n, f4), x, x)
        np.testing.assert_array_equal(out, x + x)
        assert exe._block is exe._latest.block  # pyright: ignore
    assert model.made == 3


def test_objects() -> None:
    exe = arithmetic()
    assert isinstance(exe, Executable) and type(exe).__name__ == "Executable" and type(exe) is not Executable
    assert exe.__call__(X, Y) is not None and callable(exe)
    assert "without allocating" in (type(exe).run_into.__doc__ or "")
    with pytest.raises(TypeError, match=r"not safe"):
        object.__new__(type(exe))

    class Mine(Executable):
        def __call__(self, *xs: object, **names: object) -> tuple[()]:
            return ()
    mine = Mine(exe.inputs, exe.outputs, exe.instances()[0], HOST)
    assert mine(1) == ()
    mine.run_into(out := np.empty_like(X), X, Y)
    np.testing.assert_array_equal(out, X + Y)
    unfinished = type(exe).__new__(type(exe))
    with pytest.raises(AttributeError):  # not initialised
        unfinished(X)


# -- where calls are slow ------------------------------------------------------------------------------------------------
def test_layouts() -> None:
    assert fastcall.layouts_are_known()
    a = np.zeros(3)
    assert fastcall._array_is_known(a) and not fastcall._array_is_known(a.view(Sub))


@pytest.mark.parametrize("change", ["implementation", "pointer", "header"])
def test_unknown_layouts(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if change == "implementation":
        monkeypatch.setattr(sys.implementation, "name", "pypy")
    elif change == "pointer":
        monkeypatch.setattr(pycall, "DATA", pycall.DATA + 8)
    else:
        monkeypatch.setattr(pycall, "HEADER", 24)
    assert not fastcall.layouts_are_known()


def test_numpy_without_the_known_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastcall._array_function()
    monkeypatch.setattr(np, "__version__", "x")
    assert fastcall._array_function() is None


@pytest.mark.parametrize("name", ["x86-64", "aarch64"])
def test_code_for_every_kind_of_machine(name: str) -> None:
    image = combine([compile_ir(pycall.emit_pycall(), Target.parse(name))])
    assert image.undefined() == () and shared_library(image, pycall.SYMBOLS, "calls.so")


def test_config() -> None:
    settings = [read({"TILEWRIGHT_SLOW_CALLS": value}).slow_calls for value in ("1", "0", "")]
    assert settings == [True, False, False] and not read({}).slow_calls
    with pytest.raises(InputError, match=r"TILEWRIGHT_SLOW_CALLS"):
        read({"TILEWRIGHT_SLOW_CALLS": "yes"})


def test_slow_calls_give_the_same() -> None:
    """All the other tests of executables, in a process without native calls."""
    env = {**os.environ, "TILEWRIGHT_SLOW_CALLS": "1"}
    here = os.path.dirname(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", os.path.join(here, "test_executable.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=os.path.dirname(os.path.dirname(here)))
    assert done.returncode == 0, done.stdout


def test_daemon_thread_at_exit() -> None:
    """A thread that comes back for the GIL of an interpreter that is gone."""
    code = """
import threading, time
import numpy as np
from tests.backends.test_fastcall import arithmetic
exe, x = arithmetic((1000, 1000)), np.ones((1000, 1000), np.float32)
def work():
    while True:
        exe(x, x)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_fork() -> None:
    exe = arithmetic()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(exe(X, Y), X + Y) else 1)  # pyright: ignore
    assert os.waitpid(pid, 0)[1] == 0
