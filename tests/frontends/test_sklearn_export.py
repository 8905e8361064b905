"""Estimators with irregular ops (neighbours, iterations row by row) as C functions: what a C program computes is what `exe` does, bit by
bit here, and up to rounding on AArch64 (under qemu); saved files need neither scikit-learn nor numba."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.decomposition import NMF
from sklearn.ensemble import VotingRegressor
from sklearn.impute import KNNImputer
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, LocalOutlierFactor, RadiusNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, NuSVC

import tilewright as tw
from tests.machines import GCC, need
from tilewright.backends.target import Target, runs_here

RNG = np.random.default_rng(0)
X, Y = RNG.random((150, 5)), RNG.integers(0, 3, 150)
HOLES = np.where(RNG.random(X.shape) < 0.2, np.nan, X)
MODELS = {
    "knn": (KNeighborsClassifier(4, algorithm="brute"), "predict_proba"),
    "knn_tree": (KNeighborsClassifier(3, weights="distance", algorithm="kd_tree"), "predict"),
    "knn_many": (KNeighborsRegressor(90), "predict"),
    "knn_scaled": (make_pipeline(StandardScaler(), KNeighborsRegressor(5, weights="distance", metric="manhattan")), "predict"),
    "lof": (LocalOutlierFactor(novelty=True), "score_samples"),
    "imputer": (KNNImputer(n_neighbors=3, weights="distance"), "transform"),
    "nmf": (NMF(3, init="random", random_state=0, max_iter=50), "transform"),
    "svc": (SVC(probability=True, random_state=0), "predict_proba"),
    "nusvc": (NuSVC(probability=True, random_state=0, nu=0.3), "predict_proba"),
    "radius": (RadiusNeighborsRegressor(0.9), "predict"),
    "voting": (VotingRegressor([("a", KNeighborsRegressor(3)), ("b", KNeighborsRegressor(7, algorithm="brute"))]), "predict"),
}
MAIN = """
#include "%(name)s.h"
#include <stdio.h>
#include <stdlib.h>
static double x[%(rows)d * 5];
static %(type)s y[%(rows)d * %(width)d];
int main(void) {
  void *workspace = malloc(%(name)s_workspace_bytes() + 1);
  if (fread(x, sizeof x, 1, stdin) != 1 || %(name)s_run(x, y, %(rows)d, workspace)) return 1;
  return fwrite(y, sizeof y, 1, stdout) != 1;
}
"""


def compiled(name: str, target: str = "native") -> tuple[tw.Executable, np.ndarray]:
    """The model and rows for it."""
    model, method = MODELS[name]
    x = HOLES if name == "imputer" else X
    return tw.compile(model.fit(x, Y), inputs=x, method=method, target=target), x + np.where(np.arange(len(x)) % 7 == 0, 0.0, 0.01)[:, None]


def run_c(exe: tw.Executable, name: str, x: np.ndarray, want: np.ndarray, folder: Path, target: Target) -> np.ndarray:
    exe.export(folder / f"{name}.o")
    width, kind = max(1, want.size // len(want)), "double" if want.dtype == np.float64 else "int64_t"
    (folder / "main.c").write_text(MAIN % {"name": name, "rows": len(x), "width": width, "type": kind})
    compiler, runner = need(GCC[target.arch]), [] if runs_here(target) else [need(f"qemu-{target.arch}")]
    subprocess.run([compiler, "-static", "-Wall", "-Werror", "main.c", f"{name}.o", "-o", name], cwd=folder, check=True)
    done = subprocess.run([*runner, f"./{name}"], cwd=folder, input=x.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, want.dtype).reshape(want.shape)


@pytest.mark.parametrize("name", list(MODELS))
def test_in_a_c_program(name: str, tmp_path: Path) -> None:
    exe, x = compiled(name)
    for rows in (1, len(x)):
        want = np.asarray(exe(x[:rows]))
        assert run_c(exe, name, x[:rows], want, tmp_path, Target.host()).tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["knn", "knn_tree", "knn_many", "lof", "imputer", "nmf", "svc"])
def test_on_aarch64(name: str, tmp_path: Path) -> None:
    exe, x = compiled(name)
    want = np.asarray(exe(x))
    got = run_c(compiled(name, "aarch64")[0], name, x, want, tmp_path, Target.parse("aarch64"))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


BARE = """
import sys
sys.modules["numba"] = sys.modules["sklearn"] = None
from pathlib import Path
import numpy as np, tilewright as tw
folder = Path(sys.argv[1])
for path in sorted(folder.glob("*.twx")):
    y = tw.load(path)(np.load(path.with_suffix(".x.npy")))
    assert np.asarray(y).tobytes() == np.load(path.with_suffix(".y.npy")).tobytes(), path
"""


def test_saved_models_need_neither_numba_nor_the_library(tmp_path: Path) -> None:
    for name in MODELS:
        exe, x = compiled(name)
        exe.save(tmp_path / f"{name}.twx")
        np.save(tmp_path / f"{name}.x.npy", x)
        np.save(tmp_path / f"{name}.y.npy", np.asarray(exe(x)))
    subprocess.run([sys.executable, "-c", BARE, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
