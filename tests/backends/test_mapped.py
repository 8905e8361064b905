"""Weights that stay in the model's file: read when they are packed, given back, and guarded against changes."""
from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.backends.mapped import MappedFile, check, file_of, map_file, release
from tilewright.backends.preparation import placed
from tilewright.backends.weights import Placement
from tilewright.errors import InputError
from tilewright.ir.types import F32, TensorType


def resident() -> int:
    """Bytes of file pages that this process has in memory."""
    return next(int(x.split()[1]) << 10 for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssFile:"))


def model(path: Path, seed: int = 0, rows: int = 700, batch: int | str = 3) -> np.ndarray:
    """x [batch, rows] @ w [rows, 1000], written to `path`; returns w."""
    w = np.random.default_rng(seed).standard_normal((rows, 1000), np.float32)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "m",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, rows])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 1000])], [numpy_helper.from_array(w, "w")])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return w


def x_of(rows: int = 700) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((3, rows), np.float32)


def test_arrays_of_a_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    want = np.random.default_rng(0).integers(0, 255, 40 << 20, np.uint8)
    (tmp_path / "f").write_bytes(want.tobytes())
    data = map_file(tmp_path / "f")
    assert isinstance(data, MappedFile)
    a = np.frombuffer(memoryview(data)[100:], np.uint8)
    assert file_of(a) is data and file_of(a[5:].reshape(-1, 1).T) is data and file_of(want) is None
    before = resident()
    assert np.array_equal(a, want[100:])
    assert resident() - before > 30 << 20
    release(a)
    assert resident() - before < 5 << 20
    assert np.array_equal(a[-1000:], want[-1000:])
    release(want)  # memory of its own stays as it is


def test_files_that_cannot_be_mapped_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert map_file(tmp_path / "empty") == b""
    with pytest.raises(OSError):
        map_file(tmp_path / "absent")


def test_a_file_that_changes_is_noticed_and_one_that_is_replaced_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    w, x = model(path), x_of()
    exe = tw.compile(path)
    np.testing.assert_allclose(np.asarray(exe(x)), x @ w, rtol=1e-3, atol=1e-3)
    model(tmp_path / "other.onnx", seed=1)
    os.replace(tmp_path / "other.onnx", path)  # the old file lives on
    exe.save(tmp_path / "m.twx")
    np.testing.assert_allclose(np.asarray(tw.load(tmp_path / "m.twx")(x)), x @ w, rtol=1e-3, atol=1e-3)
    again = tw.compile(path)
    with path.open("r+b") as f:
        f.truncate(100)
    with pytest.raises(InputError, match="has changed since"):
        again.save(tmp_path / "again.twx")
    assert not (tmp_path / "again.twx").exists()
    y = np.asarray(again(x))  # what was packed is safe
    assert np.isfinite(y).all() and not np.allclose(y, x @ w)


def test_updates_need_the_file_only_for_weights_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    w, x = model(path), x_of()
    exe = tw.compile(path)
    exe.update_weights({"w": 2 * w})
    np.testing.assert_allclose(np.asarray(exe(x)), 2 * x @ w, rtol=1e-3, atol=1e-3)
    with path.open("ab") as f:
        f.write(b"\0")
    exe.update_weights({"w": w})
    np.testing.assert_allclose(np.asarray(exe(x)), x @ w, rtol=1e-3, atol=1e-3)


def test_models_with_symbolic_shapes_keep_no_copy_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    w, x = model(path, batch="n"), x_of()
    exe = tw.compile(path)
    np.testing.assert_allclose(np.asarray(exe(x)), x @ w, rtol=1e-3, atol=1e-3)
    exe.save(tmp_path / "m.twx")
    np.testing.assert_allclose(np.asarray(tw.load(tmp_path / "m.twx")(x[:2])), x[:2] @ w, rtol=1e-3, atol=1e-3)
    with path.open("ab") as f:
        f.write(b"\0")
    with pytest.raises(InputError, match="has changed since"):
        exe.save(tmp_path / "m.twx")


@pytest.mark.parametrize("width", [1000, 1_500_000], ids=["many rows", "rows longer than a piece"])
def test_large_tables_are_copied_piece_by_piece(tmp_path: Path, width: int) -> None:
    """A table that is used as it is: its pages in the file go as it is copied, every row arrives."""
    rows = 12_000_000 // width + 1
    w = np.random.default_rng(3).standard_normal((rows, width), np.float32)
    w[1, 1] = 1e-40  # subnormal: taken as 0
    graph = helper.make_graph([helper.make_node("Gather", ["w", "k"], ["y"])], "m",
                              [helper.make_tensor_value_info("k", TensorProto.INT64, [rows])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])], [numpy_helper.from_array(w, "w")])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    source = map_file(path)
    at = np.frombuffer(memoryview(source), np.uint8)[bytes(source).index(w.tobytes()[:64]):][:w.nbytes].view(np.float32).reshape(w.shape)
    release(at)
    before = resident()
    table = Placement([TensorType(F32, w.shape)])
    copied = placed(at, table)
    assert resident() - before < w.nbytes // 3
    assert np.array_equal(copied, w)
    y = np.asarray(tw.compile(path)(np.arange(rows)))
    assert np.array_equal(y[2:], w[2:]) and np.array_equal(y[0], w[0]) and np.allclose(y[1], w[1], atol=1e-38)


def test_no_files_stay_open(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model(path)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        exe = tw.compile(path)
        exe(x_of())
    del exe
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    check([])
    assert onnx.load(path).graph.name == "m"
