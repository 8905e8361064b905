"""Attention's blocks of queries: how many there are, what each holds, and how much of the last one is used."""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...compiler.schedule.attention import find_roles
from ...compiler.schedule.rows import lanes_of
from ..space.composed import AttentionSketch


def attention_blocks(sketch: AttentionSketch, vectors: Sequence[int]) -> dict[str, np.ndarray]:
    """Measures (by their names in measures.py) of blocks of so many vectors of queries, [n] each: vectors, lane_use, parallel,
    tile_bytes (queries and scores of a block, which go through all stages)."""
    roles = find_roles(sketch.program)
    assert roles is not None
    lanes, size = lanes_of(roles.scores, sketch.target), roles.scores.buffer.dtype.bytes
    keys = math.prod(a.extent for a in roles.scores.axes if a not in (*roles.lead, roles.row))
    depth = math.prod(a.extent for a in roles.scores.reduce_axes)
    given = np.array(vectors, np.float64)
    queries = np.minimum(given * lanes, -(-roles.row.extent // lanes) * lanes)
    blocks = np.ceil(roles.row.extent / queries)
    return {"vectors": given, "lane_use": roles.row.extent / (blocks * queries),
            "parallel": blocks * math.prod(a.extent for a in roles.lead), "tile_bytes": queries * (keys + depth) * size}
