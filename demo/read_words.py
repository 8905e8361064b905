"""Reads the words in a picture with a recognition network that Tilewright compiles, and sets it beside ONNX Runtime.

    make demo
    python -m demo.read_words [picture.png]

Without a picture it draws one and fails (exit code 1) if a word comes back wrong.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from rich.console import Console
from rich.table import Table

import tilewright as tw

from . import ocr

LINES = ["Tilewright reads", "the words in a picture", "on any CPU"]
ROUNDS = 15
Network = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Median seconds a word, and the largest difference between both engines' outputs (probabilities)."""

    ours: float
    theirs: float
    difference: float


def onnxruntime_network(path: Path) -> Network:
    """The network in ONNX Runtime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: np.asarray(session.run(None, {name: x})[0])


def compare(ours: Network, theirs: Network, words: list[np.ndarray]) -> Comparison:
    """Times both on every word by turns, so that a drifting clock favours neither."""
    difference = max(float(np.abs(ours(x) - theirs(x)).max()) for x in words)
    samples: dict[Network, list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for network, times in samples.items():
            for x in words:
                begin = time.perf_counter()
                network(x)
                times.append(time.perf_counter() - begin)
    return Comparison(float(np.median(samples[ours])), float(np.median(samples[theirs])), difference)


def main(arguments: list[str]) -> int:
    path = ocr.model_path()
    picture = Image.open(arguments[0]) if arguments else ocr.draw(LINES)
    crops = ocr.find_words(picture)
    if not crops:
        print("error: there are no words in this picture", file=sys.stderr)
        return 1
    width = max(ocr.WIDTH, *map(ocr.scaled_width, crops))
    words = [ocr.prepare(w, width) for w in crops]
    classes = ocr.alphabet(path)

    begin = time.perf_counter()
    exe = tw.compile(path, inputs=(words[0],), threads=1, cache=False)  # the model leaves its input's size open; here it is fixed
    ready = time.perf_counter() - begin
    readings = [ocr.decode(np.asarray(exe(x)), classes) for x in words]
    print("read:", " ".join(r.text for r in readings))

    c = compare(lambda x: np.asarray(exe(x)), onnxruntime_network(path), words)
    report(exe, ready, c)
    expected = " ".join(LINES).split()
    if not arguments and [r.text for r in readings] != expected:
        print(f"error: the picture says {' '.join(expected)!r}", file=sys.stderr)
        return 1
    return 0


def report(exe: tw.Executable, ready: float, c: Comparison) -> None:
    """What the compiler did, and how the result compares, as two short tables."""
    made = exe.instances()
    labels = [call.label for i in made for call in i.plan.calls]
    console = Console(width=None if sys.stdout.isatty() else 100)
    rows("What Tilewright did", {
        "target": f"{exe.target} ({exe.target.cpu}, {8 * exe.target.vector_bytes}-bit vectors)",
        "operators": f"{sum(len(label.split('+')) for label in labels)} in {len(labels)} kernel calls",
        "largest kernel": max(labels, key=lambda label: label.count("+")),
        "kernels": f"{sum(len(i.plan.symbols) for i in made)} distinct",
        "weights": f"{sum(t.bytes for i in made for _, t in i.plan.weights) / 1e6:.1f} MB, packed when loaded",
        "arena": f"{max(i.plan.arena_bytes for i in made) / 1e6:.2f} MB for all intermediate values",
        "compile time": f"{ready:.1f} s, from nothing",
    }, console)
    rows("Beside ONNX Runtime, one thread each", {
        "Tilewright": f"{c.ours * 1e3:.2f} ms a word",
        "ONNX Runtime": f"{c.theirs * 1e3:.2f} ms a word ({onnxruntime.__version__})",
        "ratio": f"{c.theirs / c.ours:.2f} times as fast",
        "largest difference": f"{c.difference:.1e} in a probability",
    }, console)


def rows(title: str, entries: dict[str, str], console: Console) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in entries.items():
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
