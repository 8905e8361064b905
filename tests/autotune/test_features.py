"""Features: finite, in order, a function of the decisions alone, and close to what the nests really do."""
from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tests.autotune.spaces import PROBLEMS, problem
from tilewright.autotune.features import FEATURES, Features
from tilewright.autotune.features.nests import PASS, UNROLL, VECTOR, ContractionNests, encoder_of
from tilewright.autotune.features.tiles import tile_cycles
from tilewright.autotune.space import Space
from tilewright.autotune.space.contraction import ContractionSketch
from tilewright.ir.loops import Split

COUNT = 40


def _points(name: str, target: str = "native", count: int = COUNT):
    t = problem(name, target)
    space, rng = Space(t), random.Random(0)
    return t, space, [space.default(), *(space.sample(rng) for _ in range(count))]


@pytest.mark.parametrize("target", ["native", "x86-64", "aarch64"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_finite_or_absent(name: str, target: str) -> None:
    t, space, points = _points(name, target)
    x = Features(space, t)(points)
    assert x.shape == (len(points), len(FEATURES)) and x.dtype == np.float32
    assert not np.isinf(x).any()
    measured = x[:, :FEATURES.index("cycles_share")]
    known = np.array([encoder_of(space[p.sketch]) is not None for p in points])
    assert np.isfinite(measured[known]).all()
    assert np.isfinite(x[:, FEATURES.index("flops"):]).all()


@pytest.mark.parametrize("name", ["matmul", "softmax", "conv_direct"])
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    t, space, points = _points(name)
    whole = Features(space, t)(points)
    fresh = Features(Space(t), t)
    for k in (0, 7, 33):
        np.testing.assert_array_equal(fresh([points[k]])[0], whole[k])
    np.testing.assert_array_equal(fresh(points[::-1]), whole[::-1])


def test_no_points() -> None:
    t, space, _ = _points("matmul")
    assert Features(space, t)([]).shape == (0, len(FEATURES))


@pytest.mark.parametrize("name", ["matmul", "conv_direct", "batched", "winograd", "conv_first", "long_sum", "long_conv"])
def test_nests_are_those_that_are_scheduled(name: str) -> None:
    """The loops that the arrays describe: as many points in all, the same lanes, tile and straight-line steps as the stage has."""
    _, space, points = _points(name)
    sketch = space.sketches[0]
    assert isinstance(sketch, ContractionSketch)
    encoder = encoder_of(sketch)
    assert isinstance(encoder, ContractionNests)
    own = [p for p in points if p.sketch == sketch.name]
    (batch,) = encoder.encode([p.values for p in own])
    total = batch.body.points * batch.body.reduced
    for k, p in enumerate(own):
        stage = space.scheduled(p).stages[0]
        loops = stage.loops
        assert batch.trips[k].prod() == pytest.approx(total, rel=1.0)  # tiles may overhang
        assert batch.trips[k].prod() > 0.99 * total
        lanes = [t for t, kind in zip(batch.trips[k], batch.kind[k], strict=True) if kind == VECTOR]
        assert lanes == [x.axis.extent for x in loops if x.kind == "vector"]
        unrolled = [x.axis.extent for x in loops if x.kind == "unroll" and not x.reduce]
        slots = zip(batch.trips[k], batch.kind[k], batch.reduce[k], strict=True)
        assert sorted(t for t, kind, r in slots if kind == UNROLL and not r and t > 1) == sorted(n for n in unrolled if n > 1)
        assert len([r for r in stage.relations if isinstance(r, Split)]) >= len([1 for n in unrolled if n > 1]) - 2


@pytest.mark.parametrize("name", ["long_sum", "long_conv"])
def test_passes_are_seen(name: str) -> None:
    """Each pass is a stage of the schedule, and a trip of a loop outside of the tiles; nothing else about the point changes."""
    t, space, points = _points(name, count=200)
    sketch = space[space.default().sketch]
    assert isinstance(sketch, ContractionSketch)
    encoder, seen = ContractionNests(sketch), set()
    for p in points:
        if p.sketch != sketch.name or (passes := len(space.scheduled(p).stages)) == 1:
            continue
        seen.add(passes)
        whole = replace(p, values=(*p.values[:-1], 1))
        (cut,), (one,) = encoder.encode([p.values]), encoder.encode([whole.values])
        assert cut.trips[cut.kind == PASS].tolist() == [p.values[-1]]
        assert 0.999 < cut.trips.prod() / one.trips.prod() < 2  # the last pass may be shorter
        a, b = Features(space, t)([p, whole])
        assert a[FEATURES.index("passes")] == p.values[-1] and a[FEATURES.index("tiles")] > b[FEATURES.index("tiles")]
        assert len(space.scheduled(whole).stages) == 1
    assert len(seen) > 3


def test_a_packed_operand_is_contiguous() -> None:
    _, space, points = _points("matmul")
    sketch = space.sketches[0]
    assert isinstance(sketch, ContractionSketch)
    encoder = ContractionNests(sketch)
    (batch,) = encoder.encode([points[0].values])
    assert sketch.decided(points[0].values).pack
    strides = batch.stride[0, encoder.wide][batch.trips[0] > 1]
    assert strides[-1] == 1  # lanes
    assert sorted(strides[strides > 0], reverse=True) == list(strides[strides > 0])


def test_tile_cycles_prefer_tiles_that_fill_the_registers() -> None:
    t, space, _ = _points("matmul")
    sketch = space.sketches[0]
    assert isinstance(sketch, ContractionSketch)
    small, large = (tile_cycles(sketch.roles, tile, sketch.lanes, t.target) for tile in ((1, 1, 1), (1, 6, 2)))
    assert large < small
