"""Plans on disk: found again for the same graph with other weights, never for another one, and harmless when damaged."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler import build, plan_cache
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F32, TensorType


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own; plans are kept only where passes are not verified, and here however quick they were."""
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "0")
    monkeypatch.setattr(build, "WORTH_SECONDS", 0.0)
    return tmp_path / "objects"


def model(seed: int = 0, table: float = 1.0, width: int = 33) -> Graph:
    rng = np.random.default_rng(seed)
    b = GraphBuilder("m")
    x = b.input("x", TensorType(F32, (5, 20)))
    h = b.op("matmul", x, b.weight("w", rng.standard_normal((20, width), np.float32)))
    h = b.op("add", h, b.weight("bias", rng.standard_normal(3 if width == 3 else width, np.float32)))
    return b.graph([b.op("relu", b.op("mul", h, b.constant(np.full((5, width), table, np.float32))))])


def reference(seed: int, table: float, x: np.ndarray) -> np.ndarray:
    w, bias = (model(seed).constants[k].array for k in ("w", "bias"))
    return np.maximum((x @ w + bias) * np.float32(table), 0)


def found(exe: tw.Executable) -> bool:
    return "found in the cache" in exe.instances()[0].notes[0]


X = np.random.default_rng(9).standard_normal((5, 20)).astype(np.float32)


def test_a_second_compilation_finds_the_plan_and_takes_its_own_weights() -> None:
    first, second = tw.compile(model()), tw.compile(model(seed=1))
    assert not found(first) and found(second)
    np.testing.assert_allclose(np.asarray(first(X)), reference(0, 1.0, X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(second(X)), reference(1, 1.0, X), rtol=1e-4, atol=1e-5)
    w = np.asarray(model(seed=2).constants["w"].array)
    second.update_weights({"w": w, "bias": model(seed=2).constants["bias"].array})
    np.testing.assert_allclose(np.asarray(second(X)), reference(2, 1.0, X), rtol=1e-4, atol=1e-5)


def test_the_weights_values_are_not_part_of_the_key_but_literals_are() -> None:
    tw.compile(model(width=3))
    assert found(tw.compile(model(seed=1, width=3)))  # a weight small enough to stand in the text
    assert not found(tw.compile(model(table=2.0, width=3)))
    assert not found(tw.compile(model(table=2.0)))
    assert found(tw.compile(model(table=2.0)))
    np.testing.assert_allclose(np.asarray(tw.compile(model(table=2.0))(X)), reference(0, 2.0, X), rtol=1e-4, atol=1e-5)


def test_options_have_plans_of_their_own() -> None:
    tw.compile(model(), threads=1)
    assert not found(tw.compile(model(), threads=2)) and not found(tw.compile(model(), threads=1, strict=True))
    assert not found(tw.compile(model(), threads=1, cache=False)) and found(tw.compile(model(), threads=1))


def test_a_plan_without_its_objects_or_damaged_is_made_again(folder: Path) -> None:
    want = np.asarray(tw.compile(model())(X))
    files = sorted(folder.glob("*.o"))
    for f in files:
        kept = f.read_bytes()
        for data in (None, kept[:-3], kept[:50] + b"?" * 40 + kept[90:]):
            f.unlink() if data is None else f.write_bytes(data)
            np.testing.assert_array_equal(np.asarray(tw.compile(model())(X)), want)
        assert f.exists()
    assert found(tw.compile(model()))


def test_entries_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tw.compile(model())
    monkeypatch.setattr(build, "plan_key", lambda *_: "0" * 64)
    assert not found(tw.compile(model())) and found(tw.compile(model()))
    assert not found(tw.compile(model(width=17)))  # the same key, another graph


def test_a_plan_that_was_found_can_be_exported_saved_and_explained(tmp_path: Path) -> None:
    tw.compile(model())
    exe = tw.compile(model())
    assert found(exe) and "matmul" in str(exe.explain())
    exe.export(tmp_path / "m.ll")
    assert "define i32 @m_run" in (tmp_path / "m.ll").read_text()
    exe.save(tmp_path / "m.twx")
    np.testing.assert_array_equal(np.asarray(tw.load(tmp_path / "m.twx")(X)), np.asarray(exe(X)))


def test_nothing_is_kept_while_passes_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "1")
    tw.compile(model())
    assert not found(tw.compile(model()))
    assert plan_cache.plan_key(model(), exe_target()) is None


def exe_target() -> tw.Target:
    return tw.Target.host()
