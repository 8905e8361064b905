"""Equal prepared weights of several executables are one array; a plan's weights lie side by side in large memory."""
from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.backends.weights import LARGE, WORTH_SHARING, Placement
from tilewright.ir.types import F32, TensorType

WIDTH = 320


def placed(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    types = [TensorType(F32, a.shape) for a in arrays]
    place, out = Placement(types), {}
    for k, (a, t) in enumerate(zip(arrays, types, strict=True)):
        z = place.zeros(t)
        assert not z.any() and z.ctypes.data % 64 == 0
        z[...] = a
        out[str(k)] = place.settled(z)
    return list(place.finished(out).values())


def random(count: int, rows: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, 1000), np.float32) for _ in range(count)]


def owner(a: np.ndarray) -> np.ndarray:
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def test_small_weights_lie_in_one_block_and_large_ones_and_few_on_their_own() -> None:
    arrays = [*random(20, 100), *random(1, 2000)]  # 20 of 400 kB, one of 8 MB
    got = placed(arrays)
    for a, b in zip(arrays, got, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not b.flags.writeable
    assert len({id(owner(a)) for a in got}) == 2 and owner(got[0]).nbytes >= LARGE
    few = placed(random(3, 100, 1))
    assert len({id(owner(a)) for a in few}) == 3


def test_equal_arrays_are_found_and_their_place_is_used_again() -> None:
    arrays = random(40, 100)
    first = placed(arrays)
    changed = [a + 1 if k % 2 else a for k, a in enumerate(arrays)]
    second = placed(changed)
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        np.testing.assert_array_equal(b, changed[k])
        assert (a is b) == (k % 2 == 0)
    blocks = {id(owner(b)): owner(b).nbytes for k, b in enumerate(second) if k % 2}
    assert len(blocks) == 1


def test_a_block_with_little_in_it_is_let_go() -> None:
    arrays = random(40, 100)
    first = placed(arrays)
    second = placed([*arrays[:-1], arrays[-1] + 1])
    assert all(a is b for a, b in zip(first[:-1], second[:-1], strict=True))
    assert owner(second[-1]).nbytes < LARGE
    np.testing.assert_array_equal(second[-1], arrays[-1] + 1)


def test_arrays_that_differ_between_the_samples_are_kept_apart() -> None:
    (a,) = random(1, 100)
    b = a.copy()
    b.reshape(-1)[1] += 1
    c = a.copy()
    c[0, 0] = -0.0
    x, y, z, again = placed([a])[0], placed([b])[0], placed([c])[0], placed([b])[0]
    assert not np.shares_memory(x, y) and y is again and not np.shares_memory(z, x)


def test_what_nobody_uses_is_freed() -> None:
    arrays = random(20, 100, 7)
    refs = [weakref.ref(owner(a)) for a in placed(arrays)]
    gc.collect()
    assert all(r() is None for r in refs)


def test_threads_place_at_once() -> None:
    arrays, found = random(12, 100), []

    def work() -> None:
        for _ in range(10):
            found.append(placed(arrays))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 40
    for got in found:
        for a, b in zip(arrays, got, strict=True):
            np.testing.assert_array_equal(a, b)


# -- executables -------------------------------------------------------------------------------------------------------
def model(batch: int | str = 4, seed: int = 0) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """x [batch, WIDTH] through two layers."""
    ws = [np.random.default_rng(seed + k).standard_normal((WIDTH, WIDTH), np.float32) / 18 for k in range(2)]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "w1"], ["y"])]
    x, y = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, WIDTH])] for n in "xy")
    graph = helper.make_graph(nodes, "m", x, y, [numpy_helper.from_array(w.astype(np.float32), f"w{k}") for k, w in enumerate(ws)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), [w.astype(np.float32) for w in ws]


def result(x: np.ndarray, ws: Sequence[np.ndarray]) -> np.ndarray:
    return np.maximum(x @ ws[0], 0) @ ws[1]


def x_of(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((rows, WIDTH), np.float32)


def weights(exe: tw.Executable) -> list[list[np.ndarray]]:
    return [[a for a in i.weight_arrays if a.nbytes >= WORTH_SHARING] for i in exe.instances()]


def check(exe: tw.Executable, ws: Sequence[np.ndarray], rows: int = 4) -> None:
    """Within the error of two sums of WIDTH products of about 1/18."""
    np.testing.assert_allclose(np.asarray(exe(x_of(rows))), result(x_of(rows), ws), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["file", "proto", "bytes"])
def test_two_compilations_hold_one_copy(tmp_path: Path, source: str) -> None:
    proto, ws = model()
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    given = {"file": tmp_path / "m.onnx", "proto": proto, "bytes": proto.SerializeToString()}[source]
    one, two = tw.compile(given, threads=1), tw.compile(given, threads=2)
    (a,), (b,) = weights(one), weights(two)
    assert len(a) == len(b) == 2 and all(np.shares_memory(p, q) for p, q in zip(a, b, strict=True))
    check(one, ws)
    check(two, ws)
    one.update_weights({"w1": 2 * ws[1]})
    (c,), (d,) = weights(one), weights(two)
    assert np.shares_memory(c[0], d[0]) and not np.shares_memory(c[1], d[1])
    check(one, [ws[0], 2 * ws[1]])
    check(two, ws)
    one.update_weights({"w1": ws[1]})
    assert all(np.shares_memory(p, q) for p, q in zip(*weights(one), *weights(two), strict=True))
    refs = [weakref.ref(x) for x in (*a, *c)]
    del a, b, c, d, one
    gc.collect()
    check(two, ws)
    del two
    gc.collect()
    assert all(r() is None for r in refs)


def test_shapes_of_one_model_hold_one_copy() -> None:
    """Of weights that both shapes want laid out alike."""
    proto, ws = model("n")
    exe = tw.compile(proto, threads=1)
    check(exe, ws, 32)
    check(exe, ws, 128)
    a, b = weights(exe)
    assert all(np.shares_memory(p, q) for p, q in zip(a, b, strict=True))
    exe.update_weights({"w0": 3 * ws[0]})
    check(exe, [3 * ws[0], ws[1]], 32)
    check(exe, [3 * ws[0], ws[1]], 128)
    a, b = weights(exe)
    assert all(np.shares_memory(p, q) for p, q in zip(a, b, strict=True))


def test_a_file_that_was_edited_gives_its_new_weights(tmp_path: Path) -> None:
    path, (old, ws), (new, changed) = tmp_path / "m.onnx", model(), model(seed=5)
    path.write_bytes(old.SerializeToString())
    one = tw.compile(path)
    times = path.stat()
    with path.open("r+b") as f:  # in place, of equal length, and the time set back
        f.write(new.SerializeToString())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    check(one, ws)
    check(tw.compile(path), changed)


def test_a_forked_child_updates_for_itself() -> None:
    proto, ws = model()
    one, two = tw.compile(proto, threads=1), tw.compile(proto, threads=1)
    child = os.fork()
    if not child:
        code = 1
        try:
            one.update_weights({"w0": -ws[0]})
            check(one, [-ws[0], ws[1]])
            check(two, ws)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    check(one, ws)
    check(two, ws)
