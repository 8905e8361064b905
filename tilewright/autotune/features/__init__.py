"""What the cost model sees of a candidate: numbers that follow from its decisions in closed form. Nothing is scheduled or lowered.

    x = Features(space)(decisions)        # float32 [n, len(FEATURES)], about ten microseconds a candidate

Numbers of the nest (measures.py), of the task, of the target, and the few decisions that the counts do not show. What a sketch does
not have is NaN, which boosted trees take as missing. Large quantities are logarithms to base 2, so one model serves all sizes. Some
stand beside the compiler's own choice, which is seldom far from the best: in how many decisions a candidate is another one, and how much
more or less it does.
"""
from __future__ import annotations

from collections.abc import Sequence
from operator import ne
from typing import cast

import numpy as np

from ...compiler.work import work
from ..space import Decisions, Space, Subject
from ..space.composed import AttentionSketch
from ..space.contraction import ContractionSketch
from ..space.knobs import Sketch, Value
from ..space.rows import RowsSketch
from .blocks import attention_blocks
from .measures import EXTENSIVE, NAMES, measure
from .nests import ContractionNests, Encoder, NestBatch, encoder_of
from .tiles import tile_cycles

__all__ = ["FEATURES", "Features"]

_PLAIN = ("overcount", "lane_use", "pressure", "loads_per_op", "gathers", "contiguous", "broadcasts", "conflicts", "imbalance",
          "issue_bound", "load_bound", "chain_bound", "outside_share")
_DECIDED = ("order", "outer", "n_block", "m_block", "keep", "unroll", "chunk", "last", "fetch_wide", "fetch_narrow", "pack",
            "passes", "rows", "columns")
_BESIDE = ("cycles", "traffic1", "traffic2", "traffic3", "stage_time", "vector_ops", "memory_ops", "tiles", "tile_cycles", "lane_use")
FEATURES: tuple[str, ...] = (
    *NAMES, "cycles_share", "traffic2_share", "traffic3_share", "time_excess",
    "default", "contraction", "other_reading", "stages", "depth", "tile_cycles", *_DECIDED, "fetched_wide", "fetched_narrow",
    "changed", *(f"{n}_beside" for n in _BESIDE),
    "flops", "bytes", "flops_per_byte", "lanes", "registers", "l1d", "l2", "l3", "fma", "masks", "threads")
_LOG = np.array([n not in _PLAIN for n in NAMES])
_CHANGED = FEATURES.index("changed")
_SET_BESIDE = np.array([FEATURES.index(n) for n in _BESIDE])  # the columns that `…_beside` are made of


class Features:
    """The features of one task's candidates."""

    def __init__(self, space: Space, task: Subject) -> None:
        self.space, self.task = space, task
        self._encoders: dict[str, Encoder | None] = {s.name: encoder_of(s) for s in space.sketches}
        t, done = task.target, work(task.program)
        self._tiles: dict[tuple[str, tuple[int, int, int]], float] = {}
        self._task = np.array(
            [np.log2(done.flops + 1), np.log2(done.bytes + 1), np.log2((done.flops + 1) / (done.bytes + 1)), t.vector_bytes / 4,
             t.vector_registers, np.log2(t.l1d + 1), np.log2(t.l2 + 1), np.log2(t.l3 + 1), t.has_fma, t.has_masks, task.threads],
            np.float32)
        self._default: np.ndarray | None = None
        self._ideal = max(done.flops / (t.vector_bytes / 4 * (4 if t.has_fma else 2)), done.bytes / 64, 1.0)

    def __call__(self, decisions: Sequence[Decisions]) -> np.ndarray:
        """float32 [n, len(FEATURES)], rows in the order of `decisions`."""
        if (own := self._default) is None:
            own = self._default = self._absolute([self.space.default()])[0]
        out = self._absolute(decisions)
        out[:, _CHANGED + 1:_CHANGED + 1 + len(_BESIDE)] = out[:, _SET_BESIDE] - own[_SET_BESIDE]
        return out

    def _absolute(self, decisions: Sequence[Decisions]) -> np.ndarray:
        """All but what stands beside the default."""
        out = np.full((len(decisions), len(FEATURES)), np.nan, np.float32)
        names = np.array([d.sketch for d in decisions])
        for name in dict.fromkeys(d.sketch for d in decisions):
            rows = np.flatnonzero(names == name)
            self._sketch(self.space[name], [decisions[int(i)].values for i in rows], out, rows)
        out[:, -len(self._task):] = self._task
        return out

    def _sketch(self, sketch: Sketch, points: list[tuple[Value, ...]], out: np.ndarray, rows: np.ndarray) -> None:
        encoder = self._encoders[sketch.name]
        at = len(NAMES)
        flags = FEATURES.index("default")
        out[rows, flags] = [float(p == sketch.default) for p in points]
        out[rows, flags + 1] = isinstance(sketch, ContractionSketch)
        out[rows, flags + 2] = sketch.name == "contraction1"
        out[rows, _CHANGED] = [sum(map(ne, p, sketch.default)) for p in points]
        if isinstance(sketch, AttentionSketch):
            for name, values in attention_blocks(sketch, [cast(int, p[0]) for p in points]).items():
                out[rows, FEATURES.index(name)] = np.log2(values + 1) if _LOG[NAMES.index(name)] else values
        if encoder is None:
            return
        batches = encoder.encode(points)
        values = self._measured(sketch, batches)
        out[rows[:, None], np.arange(at)] = np.where(_LOG, np.log2(np.maximum(values, 0) + 1), values)
        time = values[:, NAMES.index("stage_time")]
        shares = (values[:, 0] / time, values[:, 2] / time, values[:, 3] / time, np.log2(time / self._ideal))
        out[rows[:, None], np.arange(at, at + 4)] = np.stack(shares, 1)
        out[rows, flags + 3] = len(batches)
        if isinstance(sketch, RowsSketch):
            out[rows, flags + 4] = [p[0] for p in points]  # type: ignore[call-overload]
        if isinstance(encoder, ContractionNests):
            self._decided(encoder, points, out, rows)

    def _measured(self, sketch: Sketch, batches: list[NestBatch]) -> np.ndarray:
        t = self.task.target
        lanes = sketch.lanes if isinstance(sketch, RowsSketch) else [sketch.lanes] if isinstance(sketch, ContractionSketch) else [1]
        caches = np.array([t.l1d, t.l2, t.l3 or t.l2], np.float64)
        parts = []
        for b, n in zip(batches, lanes, strict=True):
            made = np.zeros((len(b.trips), len(NAMES)))
            measure(b.trips, b.kind, b.reduce, b.stride, b.body.size, b.body.whole, b.body.inside, *b.body.arithmetic, b.body.points,
                    b.body.reduced, float(n), float(t.vector_registers), caches, 2.0 if t.has_fma else 1.0, float(self.task.threads), made)
            parts.append(made)
        if len(parts) == 1:
            return parts[0]
        stack = np.stack(parts)
        longest = stack[:, :, NAMES.index("stage_time")].argmax(0)
        values = stack[longest, np.arange(stack.shape[1])]
        values[:, :EXTENSIVE] = stack[:, :, :EXTENSIVE].sum(0)
        return values

    def _decided(self, encoder: ContractionNests, points: list[tuple[Value, ...]], out: np.ndarray, rows: np.ndarray) -> None:
        d, sketch = encoder.columns(points), encoder.sketch
        at = FEATURES.index("tile_cycles")
        tiles = list(zip(d["rows"].tolist(), d["columns"].tolist(), d["vectors"].tolist(), strict=True))
        for t in {t for t in tiles if (sketch.name, t) not in self._tiles}:
            self._tiles[sketch.name, t] = float(np.log2(tile_cycles(sketch.roles, t, sketch.lanes, self.task.target) / self._ideal))
        out[rows, at] = [self._tiles[sketch.name, t] for t in tiles]
        extents = np.array([a.extent for a in sketch.roles.k])
        chunks = np.maximum(extents[d["last"]] / np.maximum(d["chunk"], 1), 1)
        decided = d | {"chunk": np.log2(chunks), "last": encoder.contiguous[d["last"]]}
        for k, name in enumerate(_DECIDED):
            out[rows, at + 1 + k] = decided[name]
        wide, narrow = (np.log2(encoder.moves.body.whole[k]) for k in (encoder.wide, encoder.narrow))
        out[rows, at + 1 + len(_DECIDED)] = np.where(d["fetch_wide"] > 0, wide, 0)
        out[rows, at + 2 + len(_DECIDED)] = np.where(d["fetch_narrow"] > 0, narrow, 0)
