"""Images in blocks of channels: what the layout pass makes of concats, enlargements and transposed convolutions."""
from __future__ import annotations

import numpy as np
import pytest

import tilewright.ir.ops  # noqa: F401
from tilewright.backends.target import Target
from tilewright.compiler.fuse import fuse
from tilewright.compiler.passes import default_passes
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.layout import choose_layouts
from tilewright.compiler.views import plan_views
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.ops.blocked import pieces
from tilewright.ir.types import F32, TensorType

TARGET = Target.parse("x86-64-v4")  # blocks of 16


def start(*shape: int) -> tuple[GraphBuilder, Value, np.random.Generator]:
    b = GraphBuilder("g")
    return b, b.input("x", TensorType(F32, shape)), np.random.default_rng(0)


def conv(b: GraphBuilder, x: Value, o: int, rng: np.random.Generator, k: int = 1) -> Value:
    w = b.weight("w", rng.standard_normal((o, x.type.shape[1], k, k)).astype("f4"))
    return b.op("conv", x, w, strides=(1, 1), pads=(k // 2,) * 4, dilations=(1, 1), groups=1)


def laid_out(g: Graph) -> Graph:
    """The graph in blocks, with the results it had before."""
    before = g
    for p in default_passes():
        g = p.run(g)
    g = dce(choose_layouts(g, TARGET, strict=True))
    rng = np.random.default_rng(1)
    inputs = {v.name: rng.standard_normal(v.type.shape).astype("f4") for v in g.inputs}
    want, got = run_graph(before, inputs), run_graph(g, inputs)
    for a, b in zip(before.outputs, g.outputs, strict=True):
        np.testing.assert_allclose(got[b.name], want[a.name], rtol=1e-4, atol=1e-4)
    return g


def roles(g: Graph) -> dict[str, str]:
    p = fuse(g)
    weights = 0
    return {x.label: r.kind for x, r in zip(p.groups, plan_views(g, p, weights).roles, strict=True)}


def ops(g: Graph) -> list[str]:
    return [n.op for n in g.nodes]


def test_a_map_reads_the_smaller_image() -> None:
    b, x, rng = start(1, 16, 4, 4)
    small = conv(b, x, 32, rng)
    large = conv(b, b.op("repeat", x, factors=(1, 1, 2, 2)), 32, rng)
    total = b.op("relu", b.op("add", large, b.op("repeat", small, factors=(1, 1, 2, 2))))
    g = laid_out(b.graph([conv(b, total, 16, rng), conv(b, large, 16, rng)]))
    assert ops(g).count("from_blocked") == 2  # the results alone
    assert any("repeat" in label and "add" in label for label in roles(g))


@pytest.mark.parametrize("channels", [(24, 24, 24), (16, 8, 20), (24, 9), (9, 24)])
def test_channels_that_fill_no_blocks_change_lanes(channels: tuple[int, ...]) -> None:
    b, x, rng = start(1, 16, 6, 6)
    large = b.op("repeat", x, factors=(1, 1, 2, 2))
    parts = [b.op("repeat", conv(b, x, m, rng), factors=(1, 1, 2, 2)) if m == 24 else conv(b, large, m, rng) for m in channels]
    g = laid_out(b.graph([conv(b, b.op("concat", *parts, axis=1), 16, rng, 3)]))
    assert ("concat_blocked" in ops(g)) == (channels != (9, 24))


def test_pieces_cover_every_lane_once() -> None:
    for channels in ((24, 24, 24, 24), (16, 8, 20), (5, 3, 30), (1,), (32, 16)):
        seen = [(p.part, (p.block + i) * 16 + p.lane + j, (p.to_block + i) * 16 + p.to_lane + j)
                for p in pieces(channels, 16) for i in range(p.blocks) for j in range(p.lanes)]
        at = [(k, c, sum(channels[:k]) + c) for k, m in enumerate(channels) for c in range(m)]
        assert sorted(seen) == at


def test_blocks_are_cut_without_copies() -> None:
    b, x, rng = start(1, 16, 6, 6)
    y = conv(b, x, 64, rng)
    half = b.op("slice", y, starts=(0, 32, 0, 0), steps=(1,) * 4, sizes=(1, 32, 6, 6))
    g = laid_out(b.graph([conv(b, half, 16, rng)]))
    assert ops(g).count("from_blocked") == 1 and roles(g)["slice"] == "view"


def test_phases_of_a_transposed_convolution_are_written_in_place() -> None:
    b, x, rng = start(1, 16, 5, 5)
    w = b.weight("w", rng.standard_normal((32, 24, 2, 2)).astype("f4"))
    y = b.op("conv_transpose", conv(b, x, 32, rng), w, b.weight("bias", rng.standard_normal(24).astype("f4")),
             strides=(2, 2), dilations=(1, 1), begins=(0, 0), sizes=(10, 10), groups=1)
    g = laid_out(b.graph([conv(b, b.op("relu", y), 16, rng)]))
    assert ops(g).count("interleave") == 1 and ops(g).count("relu") == 4 and ops(g).count("from_blocked") == 1
    found = roles(g)
    assert found["interleave"] == "view" and "conv_direct+relu" in found


def test_few_channels_of_a_transposed_convolution_are_made_at_once() -> None:
    b, x, rng = start(1, 16, 5, 5)
    w = b.weight("w", rng.standard_normal((16, 3, 2, 2)).astype("f4"))
    y = b.op("conv_transpose", x, w, strides=(2, 2), dilations=(1, 1), begins=(0, 0), sizes=(10, 10), groups=1)
    g = laid_out(b.graph([y]))
    assert "interleave" not in ops(g) and sum(n.op == "conv_direct" for n in g.nodes) == 1


def test_linear_resize_and_pools_with_strides_run_on_blocks() -> None:
    b, x, rng = start(1, 16, 6, 6)
    y = conv(b, x, 16, rng)
    index, weight = np.minimum(np.arange(12)[:, None] // 2 + [0, 1], 5), np.tile(np.array([0.25, 0.75], "f4"), (12, 1))
    large = b.op("resample", y, b.constant(index), b.constant(weight), axis=3)
    small = b.op("avg_pool", x, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), sizes=(3, 3))
    g = laid_out(b.graph([conv(b, large, 16, rng), small]))
    found = {n.op: n.outputs[0].type.rank for n in g.nodes}
    assert found["resample"] == found["avg_pool"] == 5


@pytest.mark.parametrize("plain_reader", [False, True])
def test_plain_images_are_enlarged_in_blocks_where_only_convolutions_read_them(plain_reader: bool) -> None:
    b, x, rng = start(1, 12, 32)
    tokens = b.op("reshape", b.op("transpose", x, perm=(0, 2, 1)), shape=(1, 32, 3, 4))
    doubled = b.op("repeat", tokens, factors=(1, 1, 2, 2))
    large = tokens
    for axis, extent in ((2, 6), (3, 8)):
        index = np.minimum(np.arange(extent)[:, None] // 2 + [0, 1], extent // 2 - 1)
        weight = np.tile(np.array([0.25, 0.75], "f4"), (extent, 1))
        large = b.op("resample", large, b.constant(index), b.constant(weight), axis=axis)
    y = conv(b, b.op("concat", b.op("relu", large), doubled, axis=1), 16, rng)
    g = laid_out(b.graph([y, b.op("softmax", large, axis=3)] if plain_reader else [y]))
    ranks = [n.outputs[0].type.rank for n in g.nodes if n.op == "resample"]
    assert ranks == [4 if plain_reader else 5] * 2
    assert [n.outputs[0].type.rank for n in g.nodes if n.op == "repeat"] == [5]


def test_slices_of_blocks_for_plain_readers_share_one_conversion() -> None:
    b, x, rng = start(1, 16, 6, 6)
    y = conv(b, x, 16, rng)
    cuts = [b.op("slice", y, starts=(0, 0, k, 0), steps=(1,) * 4, sizes=(1, 16, 5, 6)) for k in range(2)]
    g = laid_out(b.graph([conv(b, c, 2, rng) for c in cuts]))
    assert ops(g).count("from_blocked") == 1


def test_signals_stay_in_blocks_between_convolutions() -> None:
    b, x, rng = start(1, 20, 30)
    y = x
    for o in (32, 24):
        w = b.weight("w", rng.standard_normal((o, y.type.shape[1], 3)).astype("f4"))
        y = b.op("relu", b.op("conv", y, w, strides=(1,), pads=(1, 1), dilations=(1,), groups=1))
    scaled = b.op("mul", y, b.weight("s", rng.standard_normal((24, 1)).astype("f4")))
    g = laid_out(b.graph([scaled, b.op("softmax", y, axis=2)]))
    assert ops(g).count("to_blocked") <= 2 and ops(g).count("from_blocked") == 2


@pytest.mark.parametrize(("channels", "width", "stride", "images", "op"), [
    (48, 8, 1, 2, "conv_grouped"), (104, 8, 2, 1, "conv_grouped"), (36, 4, 2, 1, "conv_grouped"), (32, 4, 1, 2, "conv_grouped"),
    (64, 16, 1, 1, "conv_direct"), (64, 32, 2, 2, "conv_direct"), (40, 20, 1, 1, "conv_direct"), (32, 2, 1, 1, "conv_direct")])
def test_groups_and_the_maps_after_them_are_one_kernel(channels: int, width: int, stride: int, images: int, op: str) -> None:
    """Groups of part of a block, of whole blocks, and others, with a gate and a residual; the last block may be ragged."""
    b, x, rng = start(images, 16, 9, 10)
    x = conv(b, x, channels, rng)
    w, bias, gate = (rng.standard_normal(s).astype("f4") for s in ((channels, width, 3, 3), (channels,), (1, channels, 1, 1)))
    y = b.op("conv", x, b.weight("w", w), b.weight("b", bias), strides=(stride, stride), pads=(1, 1, 1, 1), dilations=(1, 1),
             groups=channels // width)
    y = b.op("mul", b.op("relu", y), b.op("sigmoid", b.weight("g", gate)))
    s = b.weight("s", rng.standard_normal((channels, channels, 1, 1)).astype("f4"))
    skip = b.op("conv", x, s, strides=(stride, stride), pads=(0, 0, 0, 0),
                dilations=(1, 1), groups=1)
    y = b.op("add", y, skip)
    g = laid_out(b.graph((conv(b, y, 32, rng), b.op("reduce", y, kind="mean", axes=(2, 3), keepdims=True))))
    assert op in ops(g)
    labels = [x.label for x in fuse(g).groups]
    if op == "conv_grouped" or images == 1 and width % 16 == 0:
        assert any(x.startswith(f"{op}+relu+mul") for x in labels), labels


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("flat", [False, True], ids=["image", "points"])
def test_channels_behind_points_are_written_there(flat: bool, batch: int) -> None:
    """What convolutions hand to layer norms and products over channels needs no copy; of more images, the blocks are not copied twice."""
    b, x, rng = start(batch, 16, 5, 3)
    y = b.op("relu", conv(b, x, 32, rng, 3))
    y = b.op("transpose", b.op("reshape", y, shape=(batch, 32, 15)), perm=(0, 2, 1)) if flat else b.op("transpose", y, perm=(0, 2, 3, 1))
    scale, shift = b.weight("s", rng.standard_normal(32).astype("f4")), b.weight("b", rng.standard_normal(32).astype("f4"))
    y = b.op("layer_norm", y, scale, shift, axes=(y.type.rank - 1,), epsilon=1e-5)
    g = laid_out(b.graph([y]))
    assert "from_blocked" not in ops(g)
    kinds = roles(g)
    assert kinds["transpose"] == "view" and kinds["reshape"] == "view"


@pytest.mark.parametrize("channels", [24, 32])
def test_other_readers_of_channels_behind_points(channels: int) -> None:
    """Blocks that channels do not fill, readers of the plain image, signals, and batches on the last dimension."""
    b, x, rng = start(1, 16, 4, 6)
    y = conv(b, x, channels, rng)
    points = b.op("reshape", y, shape=(1, channels, 24))
    moved = b.op("transpose", points, perm=(0, 2, 1))
    outs = [moved, b.op("relu", b.op("transpose", points, perm=(2, 0, 1))), b.op("transpose", y, perm=(3, 2, 0, 1)),
            b.op("transpose", y, perm=(0, 1, 3, 2)), b.op("add", y, y)]
    g = laid_out(b.graph(outs))
    assert ops(g).count("from_blocked") == 2  # of the convolution and of the sum


def test_signals_hand_on_their_channels() -> None:
    b, x, rng = start(2, 16, 21)
    w = b.weight("w", rng.standard_normal((32, 16, 3)).astype("f4"))
    y = b.op("conv", x, w, strides=(2,), pads=(1, 1), dilations=(1,), groups=1)
    g = laid_out(b.graph([b.op("exp", b.op("transpose", y, perm=(0, 2, 1)))]))
    assert "from_blocked" not in ops(g)
