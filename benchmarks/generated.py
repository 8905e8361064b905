"""Generated tasks: layers of networks that do not exist, over the shapes that networks have. What the cost model learns from.

Each draw is a small graph (one layer with what usually surrounds it), which the compiler takes apart as it does models: so
fusion, blocked layouts and Winograd look as they do there. Parts that can be computed in several ways (compiler/sites.py) are
computed in any of them, because search meets the kernels of all. None of the models that the tuner is judged by is read, and a
program that is one of theirs is left out.
"""
from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tilewright.autotune.extract import tasks_of
from tilewright.autotune.task import Task
from tilewright.backends.target import Target
from tilewright.compiler.build import Options
from tilewright.compiler.schedule.source import HEURISTIC, Choice, Decision, Open, Wanted
from tilewright.ir import ops as _ops  # noqa: F401  (registers every op)
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.types import F32, TensorType

Rng = random.Random
CHANNELS = (8, 16, 20, 24, 32, 40, 48, 64, 72, 80, 96, 112, 120, 128, 144, 160, 176, 192, 208, 224, 256, 288, 320, 384, 448,
            512, 640, 768, 960)
SIZES = (5, 7, 8, 10, 12, 13, 14, 15, 16, 19, 20, 24, 26, 28, 30, 32, 35, 40, 48, 52, 56, 60, 64, 75, 80, 96, 104, 112, 120, 160)
FEATURES = (64, 100, 120, 128, 192, 200, 256, 300, 312, 320, 384, 400, 512, 576, 600, 640, 768, 1000, 1024, 1280, 1536, 2048, 3072)
TOKENS = (1, 2, 4, 7, 8, 12, 16, 24, 32, 40, 49, 50, 64, 77, 96, 100, 128, 160, 196, 197, 256, 320, 384, 512)
MOST_FLOPS = 6e8    # of a task: larger ones take long to time and teach no more
LEAST_BYTES = 4096  # smaller tasks are all overhead
# what stands around a layer is much alike, so that not all of it is worth timing
KEPT = {"to_blocked": 0.08, "from_blocked": 0.08, "pad border": 0.08, "pad": 0.08, "conv_direct": 0.35, "relu": 0.4, "sigmoid": 0.4,
        "hard_swish": 0.4, "gelu": 0.4, "tanh": 0.4}
JUDGED = Path(__file__).parent / "data" / "tuning_tasks.jsonl"
ACTIVATIONS = ("relu", "sigmoid", "hard_swish", "gelu", "tanh", "")


class AnyWay:
    """A `ScheduleSource` that computes sites in ways drawn at random, and leaves all else to the heuristic."""

    def __init__(self, rng: Rng) -> None:
        self._rng, self.key = rng, "any way"

    def choose(self, wanted: Sequence[Wanted], target: Target, threads: int) -> list[Choice]:
        return HEURISTIC.choose(wanted, target, threads)

    def decide(self, site: Open, target: Target, threads: int) -> Decision:
        return Decision(site.default if self._rng.random() < 0.4 else self._rng.choice(site.options))


class _Layers:
    """A graph under construction."""

    def __init__(self, rng: Rng) -> None:
        self.b, self.rng, self.values = GraphBuilder("generated"), rng, np.random.default_rng(rng.randrange(1 << 30))

    def input(self, *shape: int) -> Value:
        return self.b.input("x", TensorType(F32, shape))

    def weight(self, *shape: int) -> Value:
        return self.b.weight("w", self.values.standard_normal(shape).astype(np.float32) * 0.1)

    def conv(self, x: Value, out: int, k: tuple[int, int], stride: int = 1, groups: int = 1) -> Value:
        pads = (k[0] // 2, k[1] // 2) * 2
        w, bias = self.weight(out, x.type.shape[1] // groups, *k), self.weight(out)
        return self.b.op("conv", x, w, bias, strides=(stride, stride), pads=pads, dilations=(1, 1), groups=groups)

    def activation(self, x: Value) -> Value:
        name = self.rng.choice(ACTIVATIONS)
        return self.b.op(name, x) if name else x

    def around(self, x: Value) -> Value:
        """What follows a layer: an activation, a sum with another branch, both, neither."""
        if self.rng.random() < 0.3:
            x = self.b.op("add", x, self.input(*x.type.shape))
        return self.activation(x)


def _pointwise(g: _Layers) -> Value:
    s, rng = g.rng.choice(SIZES), g.rng
    x = g.around(g.input(1, rng.choice(CHANNELS), s, rng.choice((s, s, rng.choice(SIZES)))))
    return g.around(g.conv(g.conv(x, rng.choice(CHANNELS), (1, 1)), rng.choice(CHANNELS), (1, 1)))


def _convolution(g: _Layers) -> Value:
    """Wide and shallow, or small and deep."""
    rng = g.rng
    deep = rng.random() < 0.3
    s, channels = (rng.choice(SIZES[:7]), CHANNELS[16:27]) if deep else (rng.choice(SIZES), CHANNELS[:20])
    k = (3, 3) if deep else rng.choice(((3, 3), (3, 3), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)))
    across = rng.choice((s, s, rng.choice(SIZES[:7] if deep else SIZES)))
    x = g.conv(g.input(1, rng.choice(CHANNELS[:20]), s, across), rng.choice(channels), (1, 1))
    return g.around(g.conv(x, rng.choice(channels), k, rng.choice((1, 1, 1, 2))))


def _first(g: _Layers) -> Value:
    s, k = g.rng.choice((48, 64, 96, 112, 128, 160, 192, 224)), g.rng.choice((3, 3, 5, 7))
    return g.activation(g.conv(g.input(1, g.rng.choice((1, 3, 3, 4)), s, g.rng.choice((s, 2 * s))), g.rng.choice(CHANNELS[:9]), (k, k), 2))


def _depthwise(g: _Layers) -> Value:
    c, s, k = g.rng.choice(CHANNELS), g.rng.choice(SIZES), g.rng.choice((3, 3, 5, 7))
    x = g.conv(g.input(1, g.rng.choice(CHANNELS[:12]), s, s), c, (1, 1))
    return g.conv(g.activation(g.conv(g.activation(x), c, (k, k), g.rng.choice((1, 1, 2)), c)), g.rng.choice(CHANNELS[:12]), (1, 1))


def _dense(g: _Layers) -> Value:
    x = g.input(g.rng.choice(TOKENS), g.rng.choice(FEATURES))
    y = g.b.op("matmul", x, g.weight(x.type.shape[1], n := g.rng.choice(FEATURES)))
    return g.around(g.b.op("add", y, g.weight(n)))


def _attention(g: _Layers) -> Value:
    heads, t, d = g.rng.choice((2, 4, 6, 8, 12, 16)), g.rng.choice(TOKENS[3:]), g.rng.choice((16, 32, 40, 48, 64, 80))
    q, k = g.input(1, heads, t, d), g.input(1, heads, d, t)
    if g.rng.random() < 0.5:
        return g.b.op("matmul", q, k)
    return g.b.op("matmul", g.input(1, heads, t, t), g.input(1, heads, t, d))


def _normalised(g: _Layers) -> Value:
    shape = (1, g.rng.choice(TOKENS), g.rng.choice(FEATURES))
    x = g.input(*shape)
    if g.rng.random() < 0.5:
        x = g.b.op("add", x, g.input(*shape))
    if g.rng.random() < 0.5:
        return g.b.op("layer_norm", x, g.weight(shape[2]), g.weight(shape[2]), axes=(2,))
    return g.b.op("softmax", x, axis=2)


def _reduced(g: _Layers) -> Value:
    x = g.input(g.rng.choice(CHANNELS), g.rng.choice(SIZES), g.rng.choice(FEATURES))
    axes = g.rng.choice(((2,), (1,), (0,), (1, 2), (0, 1), (0, 2)))
    return g.b.op("reduce", g.activation(x), kind=g.rng.choice(("sum", "max", "sum")), axes=axes, keepdims=1)


def _winograd(g: _Layers) -> Value:
    """A 3x3 convolution of stride 1 between others, with channels enough for Winograd."""
    c, s = g.rng.choice(CHANNELS[4:22]), g.rng.choice(SIZES[:22])
    x = g.conv(g.input(1, g.rng.choice(CHANNELS[4:16]), s, s), c, (1, 1))
    return g.around(g.conv(x, g.rng.choice(CHANNELS[4:22]), (3, 3)))


def _long_sum(g: _Layers) -> Value:
    """A 1x1 convolution over many channels of a large image, whose blocks lie far apart."""
    s = g.rng.choice(SIZES[14:24])
    x = g.input(1, g.rng.choice((288, 320, 384, 448, 512, 640, 768)), s, s)
    return g.around(g.conv(g.activation(x), g.rng.choice((16, 32, 48, 64, 96, 128)), (1, 1)))


def _softmax(g: _Layers) -> Value:
    """Rows of attention's scores or of classes, with what comes before: a scale, a mask."""
    rows = g.rng.choice((1, 2, 4, 6, 8, 12, 16)) * g.rng.choice(TOKENS)
    x = g.input(rows, columns := g.rng.choice((*TOKENS[3:], 1000, 1024)))
    if g.rng.random() < 0.3:
        x = g.b.op("mul", x, g.weight(1))
    if g.rng.random() < 0.3:
        x = g.b.op("add", x, g.input(columns))
    return g.b.op("softmax", x, axis=1)


def _scored(g: _Layers) -> Value:
    """Attention as a whole: one kernel or three."""
    heads, t, d = g.rng.choice((2, 4, 6, 8, 12)), g.rng.choice(TOKENS[4:]), g.rng.choice((16, 32, 40, 48, 64, 80))
    scores = g.b.op("matmul", g.input(1, heads, t, d), g.input(1, heads, d, t))
    return g.b.op("matmul", g.b.op("softmax", g.b.op("mul", scores, g.weight(1)), axis=3), g.input(1, heads, t, d))


def _pooled(g: _Layers) -> Value:
    s, k = g.rng.choice(SIZES[5:]), g.rng.choice((2, 3, 3, 5))
    x = g.conv(g.input(1, g.rng.choice(CHANNELS[:10]), s, s), g.rng.choice(CHANNELS), (1, 1))
    if g.rng.random() < 0.2:
        return g.b.op("reduce", x, kind="sum", axes=(2, 3), keepdims=1)
    stride, pad = g.rng.choice((1, 2, 2, 3)), g.rng.choice((0, 0, k // 2))
    n = (s + 2 * pad - k) // stride + 1
    common = {"kernel": (k, k), "strides": (stride, stride), "pads": (pad,) * 4, "dilations": (1, 1), "sizes": (n, n)}
    if g.rng.random() < 0.25:
        return g.b.op("avg_pool", x, **common)
    return g.b.op("max_pool", g.activation(x), **common)


def _mapped(g: _Layers) -> Value:
    shape = (g.rng.choice((1, 2, 8)), g.rng.choice(CHANNELS), g.rng.choice(SIZES) * g.rng.choice((1, 7, 28)))
    x = g.activation(g.b.op("add", g.input(*shape), g.rng.choice((g.input(*shape), g.weight(shape[1], 1), g.weight(shape[2])))))
    return g.b.op("mul", x, g.input(*shape)) if g.rng.random() < 0.5 else x


def _moved(g: _Layers) -> Value:
    shape = (g.rng.choice((1, 4, 12)), g.rng.choice(TOKENS), g.rng.choice(CHANNELS), g.rng.choice((1, 8, 32, 64)))
    perm = [0, 1, 2, 3]
    while perm == sorted(perm):
        g.rng.shuffle(perm)
    return g.b.op("transpose", g.activation(g.input(*shape)), perm=tuple(perm))


KINDS: tuple[tuple[float, Callable[[_Layers], Value]], ...] = (
    (3, _pointwise), (3, _convolution), (0.7, _first), (3, _depthwise), (3, _dense), (1.5, _attention), (2, _normalised), (2, _reduced),
    (2.5, _pooled), (1, _mapped), (1, _moved), (4, _winograd), (1, _long_sum), (3, _softmax), (1, _scored))


def graph(seed: int) -> Graph:
    """The layer of a seed."""
    rng = Rng(seed)
    layers = _Layers(rng)
    kind = rng.choices([k for _, k in KINDS], [w for w, _ in KINDS])[0]
    return layers.b.graph((kind(layers),))


@cache
def _judged() -> frozenset[str]:
    """The programs that the model is judged by."""
    return frozenset(json.loads(line)["workload"] for line in JUDGED.read_text().splitlines())


def tasks(seed: int, target: Target, threads: int = 1) -> list[Task]:
    """The tasks of a seed's layer that are worth timing, those of any way to compute it."""
    rng = Rng(seed)
    options = Options(target, threads, strict=rng.random() < 0.2, schedules=AnyWay(rng))
    found = [t for t in tasks_of(graph(seed), options) if t.work.flops <= MOST_FLOPS and t.work.bytes >= LEAST_BYTES]
    return [t for t in found if t.workload not in _judged() and rng.random() < KEPT.get(t.label, 1.0)]
