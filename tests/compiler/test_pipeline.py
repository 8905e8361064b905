"""The pass pipeline: verification, naming of culprits, snapshots that run again, and what all passes do together."""
from __future__ import annotations

import numpy as np
import pytest

import tilewright.ir.ops  # noqa: F401  (registers the operators)
from tilewright.compiler import pipeline
from tilewright.compiler.passes import default_passes
from tilewright.compiler.pipeline import Pass, Trace
from tilewright.config import Config, read
from tilewright.errors import InputError, ShapeError, VerifyError
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_graph
from tilewright.ir.text import load_graph
from tilewright.ir.types import F32, TensorType
from tilewright.ir.verify import verify


def network(blocks: int, channels: int = 16) -> Graph:
    """A residual network, as exporters write it."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")

    def weight(name: str, *shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype("f4")
    x = b.input("x", TensorType(F32, (1, channels, 4, 4)))
    for k in range(blocks):
        w = b.weight(f"w{k}", weight("w", channels, channels, 3, 3))
        y = b.op("conv", x, w, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1)
        params = [b.weight(f"p{k}.{i}", np.abs(weight("p", channels)) + 0.5) for i in range(4)]
        y = b.op("relu", b.op("batch_norm", y, *params, epsilon=1e-5))
        x = b.op("add", x, b.op("mul", y, b.constant(1.0)))
    return verify(b.graph((x,)))


def test_default_passes_keep_the_meaning():
    g = network(3)
    h = pipeline.run(g, default_passes(), Config(debug=1))
    x = {"x": np.random.default_rng(1).standard_normal((1, 16, 4, 4)).astype("f4")}
    np.testing.assert_allclose(run_graph(h, x)[h.outputs[0].name], run_graph(g, x)[g.outputs[0].name], rtol=1e-4, atol=1e-4)


def test_default_passes_reach_a_fixed_point():
    once = pipeline.run(network(2), default_passes(), Config(debug=1))
    assert len(pipeline.run(once, default_passes(), Config(debug=1)).nodes) == len(once.nodes)


def test_the_pass_that_breaks_the_graph_is_named():
    def broken(g: Graph) -> Graph:
        return g.replace(nodes=g.nodes[1:])
    with pytest.raises(VerifyError, match=r"pass saw broke the graph: graph net: .* is not defined before it"):
        pipeline.run(network(1), (Pass("fine", lambda g: g), Pass("saw", broken)), Config(debug=1))
    with pytest.raises(VerifyError, match="pass deaf broke the graph: it changed the signature of net"):
        pipeline.run(network(1), (Pass("deaf", lambda g: g.replace(outputs=())),), Config(debug=1))


def test_a_pass_that_crashes_is_named():
    def crash(g: Graph) -> Graph:
        raise KeyError("x")
    with pytest.raises(KeyError) as e:
        pipeline.run(network(1), (Pass("hammer", crash),), Config())
    assert e.value.__notes__ == ["while pass hammer ran on graph net"]

    def refuse(g: Graph) -> Graph:
        raise ShapeError("a user's mistake")
    with pytest.raises(ShapeError, match="a user's mistake"):
        pipeline.run(network(1), (Pass("refuse", refuse),), Config())


def test_snapshots_are_numbered_and_run_again(tmp_path):
    g = network(1)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "099-old.twg").write_text("stale")
    trace = Trace()
    h = pipeline.run(g, default_passes()[:3], Config(dump=tmp_path), trace)
    files = sorted(p.name for p in (tmp_path / "net").iterdir())
    assert files == ["000-import.twg", "001-dce.twg", "002-fold_constants.twg", "003-simplify.twg", "weights.npz"]
    assert load_graph(tmp_path / "net" / files[0]) == g
    assert load_graph(tmp_path / "net" / files[3]) == h
    assert [e[0] for e in trace.entries] == ["dce", "fold_constants", "simplify"]
    assert "simplify" in str(trace)


def test_a_dump_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="TILEWRIGHT_DUMP"):
        pipeline.run(network(1), (), Config(dump=tmp_path / "file"))


def test_reports(capsys):
    pipeline.run(network(1), default_passes()[:2], Config(debug=5))
    text = capsys.readouterr().err
    assert "before all passes:" in text and "after dce:" in text and " ms " in text


def test_the_environment_is_read_on_demand(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    home = read({})
    assert (home.debug, home.dump, str(home.cache), home.threads, home.verify) == (0, None, "/c/tilewright", None, False)
    full = read({"TILEWRIGHT_DEBUG": "3", "TILEWRIGHT_DUMP": str(tmp_path), "TILEWRIGHT_CACHE": "0", "TILEWRIGHT_THREADS": "2"})
    assert (full.debug, full.dump, full.cache, full.threads, full.verify) == (3, tmp_path, None, 2, True)
    for name, value in (("TILEWRIGHT_DEBUG", "7"), ("TILEWRIGHT_DEBUG", "yes"), ("TILEWRIGHT_THREADS", "0")):
        with pytest.raises(InputError, match=name):
            read({name: value})
