"""Where operands are when a call of a plan runs, and what counts as streaming weights."""
from __future__ import annotations

import pytest

from benchmarks.tuning_roofline import PAGE, Where, far_bytes
from tilewright.backends.target import Target

V4 = Target.parse("x86-64-v4")


def test_weights_of_two_layers_push_each_other_out() -> None:
    layers = [[("arena", 0, 0, PAGE), ("weight", k, 0, 8 * PAGE)] for k in range(2)]
    assert far_bytes(layers, 9 * PAGE) == [Where(PAGE, 8 * PAGE, 8 * PAGE)] * 2
    assert far_bytes(layers, 32 * PAGE) == [Where(9 * PAGE, 0, 0)] * 2


@pytest.mark.parametrize("rows, streams", [(1, True), (16, True), (63, True), (64, False), (1000, False)])
def test_products_of_few_rows_stream_their_weights(rows: int, streams: bool) -> None:
    k, n = 384, 1536
    got = Where(0, 4 * k * n, 4 * k * n).adds_per_line(2.0 * rows * k * n, V4)
    assert got == (rows if streams else None)


def test_what_reads_no_weights_from_far_streams_none() -> None:
    assert Where(PAGE, PAGE, 0).adds_per_line(1e6, V4) is None
