"""Pipelines as one: what is folded into the next product shows on the graph, and the whole is a C function without Python."""
from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pd = pytest.importorskip("pandas")

from sklearn import compose, decomposition, linear_model, pipeline, preprocessing  # noqa: E402
from sklearn.base import BaseEstimator  # noqa: E402

import tilewright as tw  # noqa: E402
from tilewright.compiler import frontends  # noqa: E402
from tilewright.compiler.frontends.rows import RowSource  # noqa: E402
from tilewright.errors import InputError  # noqa: E402

RNG = np.random.default_rng(11)
X = RNG.standard_normal((80, 6)) * 3 + 1
Y = X[:, 0] - X[:, 4] + 0.1 * RNG.standard_normal(80)


def ops_of(model: BaseEstimator, sample: object, method: str = "predict") -> list[str]:
    source = frontends.load(model, [sample], method)
    assert isinstance(source, RowSource)
    return sorted(n.op for n in source.graph(4).graph.nodes if n.op != "reshape")


def test_scaling_and_projection_are_multiplied_into_the_model() -> None:
    m = pipeline.make_pipeline(preprocessing.StandardScaler(), decomposition.PCA(3), linear_model.Ridge()).fit(X, Y)
    found = ops_of(m, X)
    assert set(found) == {"add", "matmul"} and found.count("matmul") == 1, "one product, and no subtraction or division"


def test_one_hot_columns_before_a_product_are_a_look_up() -> None:
    codes = RNG.integers(0, 30, (80, 1)).astype(float)
    m = pipeline.make_pipeline(preprocessing.OneHotEncoder(handle_unknown="ignore"), linear_model.Ridge()).fit(codes, Y)
    found = ops_of(m, codes)
    assert "matmul" not in found and "gather" in found


def test_columns_that_nothing_uses_are_not_read() -> None:
    keep = compose.ColumnTransformer([("a", preprocessing.StandardScaler(), [1, 3])])
    m = pipeline.make_pipeline(keep, linear_model.Ridge()).fit(X, Y)
    source = frontends.load(m, [X], "predict")
    assert isinstance(source, RowSource)
    (product,) = (n for n in source.graph(4).graph.nodes if n.op == "matmul")
    assert product.operands[0].type.shape == (4, 2)
    sparse = linear_model.Lasso(0.5).fit(X, Y)
    assert 0 < np.count_nonzero(sparse.coef_) < 5
    source = frontends.load(sparse, [X], "predict")
    assert isinstance(source, RowSource)
    (product,) = (n for n in source.graph(4).graph.nodes if n.op == "matmul")
    assert product.operands[0].type.shape == (4, np.count_nonzero(sparse.coef_)), "weights of 0 read no columns"


def test_tables_of_other_columns() -> None:
    """Columns are found by name, in any order; more of them do no harm, fewer and doubled ones are errors."""
    d = pd.DataFrame(X, columns=list("abcdef"))
    m = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge()).fit(d, Y)
    exe = tw.compile(m, inputs=d, threads=1)
    want = m.predict(d)
    for other in (d, d[list("fcbade")], d.assign(more="text")):
        assert np.allclose(np.asarray(exe(other)), want, rtol=1e-12)
    with pytest.raises(InputError, match="no column 'c', 'e'"):
        exe(d[list("abdf")])
    with pytest.raises(InputError, match="several columns 'a'"):
        exe(pd.concat([d, d[["a"]]], axis=1))
    with pytest.raises(InputError, match=r"expected \[rows, 6\]"):
        exe(X[:, :5])
    assert np.asarray(exe(d[:0])).shape == (0,)


def test_a_pipeline_with_strings_as_a_c_function(tmp_path: Path) -> None:
    d = pd.DataFrame(X[:, :2], columns=["a", "b"]).assign(city=np.array(["oslo", "rome", "lima"])[RNG.integers(0, 3, len(X))])
    columns = compose.make_column_transformer((preprocessing.StandardScaler(), ["a", "b"]),
                                              (preprocessing.OneHotEncoder(handle_unknown="ignore"), ["city"]))
    m = pipeline.make_pipeline(columns, linear_model.LogisticRegression()).fit(d, Y > 0)
    exe = tw.compile(m, inputs=d, method="predict_proba", threads=1)
    exe.save(tmp_path / "m.twx")
    assert np.array_equal(np.asarray(tw.load(tmp_path / "m.twx")(d)), np.asarray(exe(d)))
    exe.export(tmp_path / "m.so", header=True)
    rows = exe.boundary.block(d)  # type: ignore[attr-defined]  (numbers, and the numbers of strings: what C gives)
    out = np.empty((len(rows), 2))
    library = ctypes.CDLL(str(tmp_path / "m.so"))
    library.m_workspace_bytes.restype = ctypes.c_int64
    room = np.empty(library.m_workspace_bytes() + 1, np.uint8)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (rows, out)]
    assert library.m_run(*pointers, ctypes.c_int64(len(rows)), ctypes.c_void_p(room.ctypes.data)) == 0
    assert np.array_equal(out, np.asarray(exe(d)))
    assert np.allclose(out, m.predict_proba(d), rtol=1e-12, atol=1e-14)
    assert "m_run(const double *x, double *y, int64_t rows, void *workspace)" in (tmp_path / "m.h").read_text()
    if compiler := shutil.which("cc"):
        _c_program(compiler, tmp_path, rows[0], out[0])


def _c_program(compiler: str, folder: Path, row: np.ndarray, want: np.ndarray) -> None:
    """The same from C, for one row."""
    values = ", ".join(repr(float(v)) for v in row)
    (folder / "main.c").write_text(f"""
#include <stdio.h>
#include <stdlib.h>
#include "m.h"
int main(void) {{
    double x[] = {{{values}}}, y[2];
    void *workspace = malloc((size_t)m_workspace_bytes() + 1);
    int code = m_run(x, y, 1, workspace);
    printf("%.17g %.17g\\n", y[0], y[1]);
    return code;
}}
""")
    subprocess.run([compiler, "main.c", "./m.so", "-o", "main"], cwd=folder, check=True)
    done = subprocess.run(["./main"], cwd=folder, check=True, capture_output=True, text=True, env={"LD_LIBRARY_PATH": str(folder)})
    assert [float(v) for v in done.stdout.split()] == want.tolist()
