"""Decision forests on every kind of processor: the engine that is chosen for each shape of forest and number of rows, on the x86
levels that this machine has and, under qemu, on AArch64. All results are the reference's, bit by bit."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.machines import need, run_models, targets
from tilewright.backends.llvm.native import native_code
from tilewright.backends.target import Target
from tilewright.compiler.frontends.trees.table import emit
from tilewright.compiler.passes.trees import choose_trees
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.forest import Forest, predict
from tilewright.ir.graph import Graph
from tilewright.ir.ops.trees import random_forest, random_rows
from tilewright.ir.types import TensorType, dtype_of

FEATURES = 6
FORESTS: dict[str, dict] = {  # name -> what random_forest is given
    "small": {"trees": 24, "leaves": 12}, "one tree": {"trees": 1, "leaves": 9}, "one leaf": {"trees": 3, "leaves": 1},
    "multiple outputs": {"trees": 21, "leaves": 30, "width": 2, "columns": 5},
    "numbers": {"trees": 40, "leaves": 50, "values": np.dtype("i4")},
    "byte": {"trees": 4, "leaves": 256}, "chain": {"trees": 2, "leaves": 700, "unbalanced": True}, "wide": {"trees": 3, "leaves": 3000}}
OTHERS: dict[str, dict] = {"small": {"trees": 60, "leaves": 14}, "wide": {"trees": 5, "leaves": 4000}}  # alike, but for their sizes
ROWS = (1, 530)


def forest(name: str, dtype: np.dtype) -> tuple[Forest, np.random.Generator]:
    rng = np.random.default_rng(len(name))
    return random_forest(rng, dtype, features=FEATURES, **FORESTS[name]), rng


def graph(f: Forest, rows: int, dtype: np.dtype) -> Graph:
    b = GraphBuilder("forest")
    return b.graph([emit(b, b.input("x", TensorType(dtype_of(dtype), (rows, FEATURES))), f)])


@pytest.mark.parametrize("name", FORESTS)
def test_levels(name: str) -> None:
    dtype = np.dtype(("f8", "f4")[len(name) % 2])
    f, rng = forest(name, dtype)
    for rows in ROWS:
        x, g = random_rows(rng, rows, FEATURES, dtype), graph(f, rows, dtype)
        for target in targets():
            np.testing.assert_array_equal(np.asarray(tw.compile(g, target=target)(x)), predict(x, f), f"{target}, {rows} rows")


def test_aarch64(tmp_path: Path) -> None:
    need("qemu-aarch64")
    target, models, wanted = Target.parse("aarch64"), [], []
    for k, name in enumerate(FORESTS):
        dtype = np.dtype(("f4", "f8")[k % 2])
        f, rng = forest(name, dtype)
        for rows in ROWS:
            x = random_rows(rng, rows, FEATURES, dtype)
            models.append((f"forest_{k}_{rows}", tw.compile(graph(f, rows, dtype), target=target), (x,)))
            wanted.append(predict(x, f))
    for (got,), want in zip(run_models(models, target, tmp_path), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "native", "aarch64"])
def test_engines(level: str) -> None:
    """One row of small trees goes through all of them at once where bytes can be looked up; huge trees are walked."""
    target = Target.parse(level)

    def engine(name: str, rows: int) -> str:
        g = choose_trees(graph(forest(name, np.dtype("f4"))[0], rows, np.dtype("f4")), target)
        return next(n.op for n in g.nodes if n.op.startswith("tree_") and n.op != "tree_ranks")
    assert engine("small", 530) == "tree_slices"
    assert engine("small", 1) == ("tree_walk" if level == "x86-64" else "tree_row")
    assert engine("wide", 1) == engine("wide", 530) == "tree_walk"


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "native", "aarch64"])
def test_code_does_not_depend_on_the_forest(level: str) -> None:
    """Other numbers of trees, nodes, thresholds and sets: the same keys of the cache, the same text."""
    target = Target.parse(level)
    for name, more in OTHERS.items():
        for rows in ROWS:
            found = []
            for given in (FORESTS[name], more):
                f = random_forest(np.random.default_rng(0), np.dtype("f4"), features=FEATURES, **given)
                nodes = choose_trees(graph(f, rows, np.dtype("f4")), target).nodes
                codes = [native_code(n, target) for n in nodes if n.op.startswith("tree_")]
                found.append([(c.key, c.text("k")) for c in codes])
            # one row: trees fill a register's lanes or do not, and there is a table of 64 columns or more
            assert rows == 1 and "tree_row" in found[0][-1][0] or found[0] == found[1]
