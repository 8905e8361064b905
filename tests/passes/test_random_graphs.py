"""Every pass, and all of them in order, keep the results of random graphs; so does the split into preparation and rest."""
from __future__ import annotations

import numpy as np
import pytest

from tests.passes.random_graphs import random_graph
from tilewright.compiler import pipeline
from tilewright.compiler.passes import default_passes
from tilewright.compiler.passes.preparation import split_preparation
from tilewright.config import Config
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_graph
from tilewright.ir.text import arrays_of, parse_graph, print_graph
from tilewright.ir.verify import verify


def results(g: Graph, extra: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    given = {n: rng.uniform(-2, 2, s).astype("f4") for n, s in (("x", (1, 4, 3, 3)), ("y", (2, 6)))}
    out = run_graph(g, {**given, **(extra or {})})
    return [out[v.name] for v in g.outputs]


def assert_close(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * max(1.0, float(np.abs(b).max(initial=0))))


@pytest.mark.parametrize("seed", range(120))
def test_passes_keep_the_results(seed):
    g = verify(random_graph(seed))
    want = results(g)
    assert parse_graph(print_graph(g), arrays_of(g)) == g
    for p in {p.name: p for p in default_passes()}.values():
        assert_close(results(verify(p.run(g))), want)
    h = pipeline.run(g, default_passes(), Config(debug=1))
    assert_close(results(h), want)
    p = split_preparation(h)
    verify(p.prep)
    parameters = dict(zip([v.name for v in p.parameters], p.prepare(), strict=True))
    assert_close(results(verify(p.main), parameters), want)
