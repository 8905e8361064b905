"""Decision forests beside LightGBM: many rows and one, with all of this machine's vectors and with fewer.

    python -m benchmarks.trees                    # LightGBM 500 trees x 63 leaves x 50 features, one thread
    python -m benchmarks.trees --targets native,x86-64-v3,x86-64-v2 --need 60,15,25,8
    python -m benchmarks.trees --big              # 5,000 trees x 255 leaves: seconds and memory of the compiler
    python -m benchmarks.trees --shapes           # the same for 10,000 columns, trees of 1,000 levels and more, and single trees

Results are compared with LightGBM's bit by bit before anything counts. LightGBM and every target take turns in short bursts;
the numbers are the best of each, the ratios those of the bests. LightGBM's one row is timed through `Booster.predict`, its
usual call, with the same row again and again, which is its best case. --need: least ratios, many rows and one of each target.
"""
from __future__ import annotations

import argparse
import importlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from platformdirs import user_cache_path

import tilewright as tw

ROWS, FEATURES = 10000, 50


class Booster(Protocol):
    def predict(self, data: np.ndarray, *, num_threads: int) -> np.ndarray: ...
    def save_model(self, filename: str) -> object: ...


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """A file in the cache, which appears whole."""
    path = user_cache_path("tilewright") / "benchmarks" / "trees" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            make(Path(folder) / name)
            (Path(folder) / name).replace(path)
    return path


def lightgbm_500(path: Path) -> None:
    lgb = importlib.import_module("lightgbm")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * ROWS, FEATURES)).astype(np.float32)
    y = (x[:, :10] ** 2).sum(1) + x[:, 10] * x[:, 11] + rng.standard_normal(len(x))
    options = {"objective": "regression", "num_leaves": 63, "verbose": -1, "num_threads": 1}
    lgb.train(options, lgb.Dataset(x, y), 500).save_model(str(path))


def best(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, seconds: float) -> float:
    times, stop = [], time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 3:
        begin = time.perf_counter()
        f(x)
        times.append(time.perf_counter() - begin)
    return min(times)


def beside_lightgbm(targets: list[str], rounds: int, seconds: float) -> list[float]:
    """Ratios: many rows and one, for each target."""
    booster: Booster = importlib.import_module("lightgbm").Booster(model_file=str(cached("lightgbm_500x63.txt", lightgbm_500)))
    x = np.random.default_rng(1).standard_normal((ROWS, FEATURES)).astype(np.float32)

    def library(rows: np.ndarray) -> np.ndarray:
        return booster.predict(rows, num_threads=1)
    engines: dict[str, Callable[[np.ndarray], np.ndarray]] = {"LightGBM": library}
    wanted = library(x)
    for t in targets:
        begin = time.perf_counter()
        exe = tw.compile(booster, inputs=x[:100], target=t, threads=1)  # pyright: ignore[reportArgumentType]
        print(f"{t}: compiled in {time.perf_counter() - begin:.2f} s", flush=True)
        assert np.array_equal(np.asarray(exe(x)), wanted), f"{t}: many rows differ from LightGBM's"
        same = (np.array_equal(np.asarray(exe(x[k:k + 1])), wanted[k:k + 1]) for k in range(300))
        assert all(same), f"{t}: one row differs from LightGBM's"
        engines[t] = cast("Callable[[np.ndarray], np.ndarray]", exe)
    found = {e: [np.inf, np.inf] for e in engines}
    for _ in range(rounds):
        for name, f in engines.items():
            for k, rows in enumerate((x, x[:1])):
                found[name][k] = min(found[name][k], best(f, rows, seconds))
    ours = [found["LightGBM"][k] / found[t][k] for t in targets for k in (0, 1)]
    for name, (many, one) in found.items():
        ratios = "" if name == "LightGBM" else f"   x{found['LightGBM'][0] / many:.1f}   x{found['LightGBM'][1] / one:.1f}"
        print(f"{name:12s} {ROWS} rows {many * 1e3:8.2f} ms   one row {one * 1e6:7.2f} us{ratios}")
    return ours


# -- a huge forest -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Shape:
    """deep: each tree has one long branch."""

    trees: int
    leaves: int
    columns: int = FEATURES
    deep: bool = False

    def __str__(self) -> str:
        return f"{self.trees:,} trees x {self.leaves:,} leaves x {self.columns:,} columns{', one branch' * self.deep}"


BIG = Shape(5000, 255)
SHAPES = (Shape(500, 63, 10000), Shape(2000, 255, 10000), Shape(100, 1001, deep=True), Shape(1, 20000, deep=True), Shape(1, 255),
          Shape(1, 1), Shape(5000, 1), BIG)


def random_model(path: Path, shape: Shape) -> None:
    """A model file of LightGBM: trees that grow at random ends, over 255 thresholds for each feature, as its bins make them."""
    rng, leaves = np.random.default_rng(2), shape.leaves
    grid = np.sort(rng.standard_normal((shape.columns, 255)), 1)
    head = ["tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0", f"max_feature_idx={shape.columns - 1}",
            "objective=regression", "feature_names=" + " ".join(f"f{k}" for k in range(shape.columns)),
            "feature_infos=" + " ".join(["[-9:9]"] * shape.columns), "", ""]
    with path.open("w") as out:
        out.write("\n".join(head))
        for t in range(shape.trees):
            left, right = _topology(rng, leaves, shape.deep)
            feature = rng.integers(0, shape.columns, leaves - 1)
            threshold = grid[feature, rng.integers(0, 255, leaves - 1)]
            parts = {"split_feature": feature, "threshold": threshold, "decision_type": np.full(leaves - 1, 2), "left_child": left,
                     "right_child": right, "leaf_value": rng.standard_normal(leaves)}
            out.write(f"Tree={t}\nnum_leaves={leaves}\nnum_cat=0\n" + "".join(
                f"{k}={' '.join(map(repr, v.tolist()))}\n" for k, v in parts.items()) + "is_linear=0\nshrinkage=1\n\n\n")
        out.write("end of trees\n\n")


def _topology(rng: np.random.Generator, leaves: int, deep: bool) -> tuple[np.ndarray, np.ndarray]:
    """Children, ~leaf where they are leaves: each new node splits a leaf, of deep trees the last one."""
    left, right = np.zeros(leaves - 1, np.int64), np.zeros(leaves - 1, np.int64)
    if leaves == 1:
        return left, right
    if deep:
        right[:] = np.r_[np.arange(1, leaves - 1), ~(leaves - 1)]
        return ~np.arange(leaves - 1), right
    left[0], right[0] = ~0, ~1
    place = [(left, 0), (right, 0)]  # where each leaf hangs
    for n, k in enumerate((rng.random(leaves) * np.arange(1, leaves + 1)).astype(int)[1:leaves - 1], 1):
        side, at = place[k]
        side[at], left[n], right[n] = n, ~k, ~(n + 1)
        place[k] = left, n
        place.append((right, n))
    return left, right


def compile_shape(path: Path, shape: Shape) -> None:
    """In a process of its own: prints seconds and the peak of memory."""
    x = np.random.default_rng(3).standard_normal((300, shape.columns))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begin, cpu = time.perf_counter(), time.process_time()
    exe = tw.compile(path, threads=1, cache=False)
    run = cast("Callable[[np.ndarray], np.ndarray]", exe)
    y = run(x)
    seconds, cpu, peak = time.perf_counter() - begin, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wanted = importlib.import_module("lightgbm").Booster(model_file=str(path)).predict(x, num_threads=1)
    assert np.array_equal(y, wanted), "the forest's result differs from LightGBM's"
    print(f"{shape}: {seconds:.1f} s from the file to the first result ({cpu:.1f} s of processor), "
          f"{peak:.2f} GiB at the peak ({before:.2f} before); "
          f"300 rows {best(run, x, 1) * 1e3:.1f} ms, one row {best(run, x[:1], 1) * 1e6:.0f} us")


def _file(shape: Shape) -> Path:
    name = f"random_{shape.trees}x{shape.leaves}" + (f"x{shape.columns}" if shape.columns != FEATURES else "") + "_deep" * shape.deep
    return cached(f"{name}.txt", lambda path: random_model(path, shape))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="native,x86-64-v3")
    parser.add_argument("--need", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15)
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child is not None:
        compile_shape(_file(SHAPES[a.child]), SHAPES[a.child])
        return 0
    if a.big or a.shapes:
        chosen = range(len(SHAPES)) if a.shapes else [SHAPES.index(BIG)]
        for k in chosen:
            _file(SHAPES[k])
        return max(subprocess.run([sys.executable, "-m", "benchmarks.trees", "--child", str(k)], check=False).returncode for k in chosen)
    ratios = beside_lightgbm(a.targets.split(","), a.rounds, a.seconds)
    needed = [float(v) for v in a.need.split(",") if v]
    short = [f"x{r:.1f} < x{n:g}" for r, n in zip(ratios, needed, strict=False) if r < n]
    print("ratios hold" if needed and not short else "; ".join(short))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
