"""Damaged models, absurd sizes, odd data and a broken cache, through the public interface: one clear error or none at all."""
from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tests.frontends.models import model, run
from tilewright.backends.memory import aligned

X = np.array([1, -2], "f4")


def dense(rows: int = 5, seed: int = 0) -> onnx.ModelProto:
    """softmax(relu(x w + b)), x: f32[rows,7]."""
    rng = np.random.default_rng(seed)
    w, b = rng.standard_normal((7, 9)).astype("f4"), rng.standard_normal(9).astype("f4")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["a"]),
             helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Softmax", ["r"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [rows, 7]), ("y", [rows, 9])))
    g = helper.make_graph(nodes, "dense", [x], [y], [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")])
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refusal(call: Callable[[], object], kind: type[tw.TilewrightError]) -> str:
    """The message of the error that `call` raises: one line, soon (nothing large was tried)."""
    begin = time.perf_counter()
    with pytest.raises(kind) as e:
        call()
    assert time.perf_counter() - begin < 20
    text = str(e.value)
    assert text and "\n" not in text and len(text) < 400
    return text


# ---- models --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("data", [b"", b"GIF89a", dense().SerializeToString()[:-9], bytes(64)], ids=["empty", "gif", "truncated", "zeros"])
def test_files_that_are_no_models(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    for source in (tmp_path / "m.onnx", data):
        refusal(lambda source=source: tw.compile(source), tw.ModelError)
        refusal(lambda source=source: tw.check(source), tw.ModelError)


@pytest.mark.parametrize("location", ["gone.bin", "../w.bin", "/etc/passwd"])
def test_external_data_that_is_missing_or_elsewhere(tmp_path: Path, location: str) -> None:
    m = dense()
    w = m.graph.initializer[0]
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    w.external_data.add(key="location", value=location)
    (tmp_path / "w.bin").write_bytes(bytes(4 * 63))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "m.onnx"
    path.write_bytes(m.SerializeToString())
    assert "'w'" in refusal(lambda: tw.compile(path), tw.ModelError)


@pytest.mark.parametrize(("graph", "kind", "word"), [
    ("g (float[2] x) => (float[2] y) { a = Add(x, b) b = Abs(a) y = Abs(x) }", tw.ModelError, "cycle"),
    ("g (float[2] x) => (float[2] y) { y = Frobnicate(x) }", tw.UnsupportedError, "Frobnicate"),
    ("g (float[2,3] x, float[4,5] z) => (float[2,5] y) { y = MatMul(x, z) }", tw.TilewrightError, "MatMul"),
    ("g (float[2] x) => (float[2,1] y) { y = Abs(x) }", tw.TilewrightError, "'y'"),
    ("g (float[9000000,9000000] x) => (float[1] y) { y = ReduceSum(x) }", tw.ModelError, "GiB"),
    ("g (float[300000] x) => (float[a,b] y) <int64[2] s = {300000, 1}> { r = Reshape(x, s) y = Add(r, x) }", tw.ModelError, "GiB"),
])
def test_broken_graphs(graph: str, kind: type[tw.TilewrightError], word: str) -> None:
    assert word in refusal(lambda: tw.compile(model(graph)), kind)


def test_sizes_beyond_memory_are_refused_at_the_call() -> None:
    exe = tw.compile(model("g (float[N] x) => (float[N] y) { y = Exp(x) }"))
    assert "4,096.0 GiB" in refusal(lambda: exe(np.broadcast_to(np.float32(1), (1 << 40,))), tw.InputError)
    with pytest.raises(tw.InputError, match=r"need 1,048,576\.0 GiB"):
        aligned(1 << 50)


# ---- data ----------------------------------------------------------------------------------------------------------

ODD = np.array([np.nan, np.inf, -np.inf, 1e38, -1e-40, -0.0, 0.5], "f4")


@pytest.mark.parametrize("body", [
    "y = Relu(x)", "y = Exp(x)", "y = Sigmoid(x)", "y = Tanh(x)", "y = Abs(x)", "y = Softplus(x)", "y = Sqrt(x)", "y = Log(x)",
    "y = Erf(x)", "y = Floor(x)", "y = Softmax(x)", "y = ReduceMax<keepdims = 0>(x)", "y = ReduceSum<keepdims = 0>(x)", "y = Max(x, z)",
    "y = Min(x, z)", "y = Add(x, z)", "y = Mul(x, z)", "y = Div(x, z)", "y = Sign(x)", "y = Sin(x)", "y = HardSigmoid(x)", "y = IsNaN(x)"])
def test_nan_and_inf_pass_as_ieee_and_onnx_say(body: str) -> None:
    """Against the references: NaNs in the same places, infinities equal, the rest close."""
    kind, shape = ("bool", "[7,7]") if "IsNaN" in body else ("float", "" if "keepdims" in body else "[7,7]")
    m = model(f"g (float[7,7] x, float[7,7] z) => ({kind}{shape} y) {{ {body} }}")
    x, z = np.meshgrid(ODD, ODD)
    x, z = np.ascontiguousarray(x), np.ascontiguousarray(z)
    with np.errstate(all="ignore"):
        (want,) = run(m, x, z)
    got = np.asarray(tw.compile(m)(x, z))
    assert isinstance(want, np.ndarray) and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-37)  # tiny results may be flushed


def test_nan_and_inf_stay_in_their_rows() -> None:
    x = np.random.default_rng(1).standard_normal((5, 7)).astype("f4")
    clean = np.asarray(tw.compile(dense())(x))
    x[1, 3], x[3, 0] = np.nan, np.inf
    got = np.asarray(tw.compile(dense())(x))
    assert np.isnan(got[1]).all() and np.isnan(got[3]).any()
    np.testing.assert_array_equal(got[[0, 2, 4]], clean[[0, 2, 4]])


# ---- the cache -----------------------------------------------------------------------------------------------------

def answer() -> np.ndarray:
    return np.asarray(tw.compile(dense())(np.ones((5, 7), "f4")))


def test_corrupt_entries_are_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    want = answer()
    entries = list(tmp_path.rglob("*.o"))
    assert entries
    for k, e in enumerate(entries):
        data = bytearray(e.read_bytes())
        data[len(data) // 2 + k] ^= 0xFF
        e.write_bytes(data)
    np.testing.assert_array_equal(answer(), want)
    for e in entries:
        e.write_bytes(b"")
    np.testing.assert_array_equal(answer(), want)


@pytest.mark.parametrize("folder", ["/proc/tilewright", "/dev/null", "/dev/full", "file", "file/below", "a\nb"])
def test_a_cache_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    want = answer()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / folder))
    np.testing.assert_array_equal(answer(), want)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.backends import cache

    def full(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(28, "No space left on device")
    want = answer()
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache.tempfile, "mkstemp", full)
    np.testing.assert_array_equal(answer(), want)


RACER = """
import sys, numpy as np, onnx
import tilewright as tw
y = tw.compile(sys.argv[1])(np.ones((5, 7), np.float32))
print(np.asarray(y).tobytes().hex())
"""


def test_eight_processes_share_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another removes and damages entries under them."""
    want = answer().tobytes().hex()
    onnx.save(dense(), tmp_path / "m.onnx")
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path / "m.onnx")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True) for _ in range(8)]
    k = 0
    while any(r.poll() is None for r in racers):
        for e in list((tmp_path / "cache").rglob("*.o")):
            k += 1
            with contextlib.suppress(OSError):  # it was replaced meanwhile
                e.unlink() if k % 2 else e.write_bytes(e.read_bytes()[:100])
        time.sleep(0.01)
    for r in racers:
        out, err = r.communicate()
        assert r.returncode == 0, err
        assert out.strip() == want
