"""Generated tasks: layers of networks that do not exist, over the shapes that networks have. What the cost model learns from.

Each draw is a small graph (one layer with what usually surrounds it), which the compiler takes apart as it does models: so
fusion, blocked layouts and Winograd look as they do there. None of the models that the tuner is judged by is read.
"""
from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from tilewright.autotune.extract import tasks_of
from tilewright.autotune.task import Task
from tilewright.backends.target import Target
from tilewright.compiler.build import Options
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
ACTIVATIONS = ("relu", "sigmoid", "hard_swish", "gelu", "tanh", "")


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
    rng = g.rng
    s = rng.choice(SIZES)
    k = rng.choice(((3, 3), (3, 3), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)))
    x = g.conv(g.input(1, rng.choice(CHANNELS), s, rng.choice((s, s, rng.choice(SIZES)))), rng.choice(CHANNELS[:20]), (1, 1))
    return g.around(g.conv(x, rng.choice(CHANNELS[:20]), k, rng.choice((1, 1, 1, 2))))


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


def _pooled(g: _Layers) -> Value:
    s, k = g.rng.choice(SIZES[5:]), g.rng.choice((2, 3))
    x = g.conv(g.input(1, g.rng.choice(CHANNELS[:10]), s, s), g.rng.choice(CHANNELS), (1, 1))
    n = (s - k) // 2 + 1
    return g.b.op("max_pool", x, kernel=(k, k), strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), sizes=(n, n))


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
    (5, _pointwise), (5, _convolution), (1, _first), (3, _depthwise), (4, _dense), (2, _attention), (2, _normalised), (1.5, _reduced),
    (0.7, _pooled), (1, _mapped), (1, _moved))


def graph(seed: int) -> Graph:
    """The layer of a seed."""
    rng = Rng(seed)
    layers = _Layers(rng)
    kind = rng.choices([k for _, k in KINDS], [w for w, _ in KINDS])[0]
    return layers.b.graph((kind(layers),))


def tasks(seed: int, target: Target, threads: int = 1) -> list[Task]:
    """The tasks of a seed's layer that are worth timing, Winograd's among them."""
    options = Options(target, threads, strict=Rng(seed).random() < 0.4)
    return [t for t in tasks_of(graph(seed), options) if t.work.flops <= MOST_FLOPS and t.work.bytes >= LEAST_BYTES]
