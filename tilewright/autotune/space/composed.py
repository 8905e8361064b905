"""The spaces of programs that are scheduled as a whole: Winograd's convolution in strips, attention, a depthwise
convolution with what makes its image, products with what follows along their rows.

What dominates them is contractions inside loops that all computes share; so the rules of contraction.py hold for the products of a
strip and for a product before a layer norm, and of attention the block of queries that goes through all stages at once is open.
"""
from __future__ import annotations

from dataclasses import replace
from typing import cast

from ...backends.target import Target
from ...compiler.schedule.attention import attention_vectors, schedule_attention
from ...compiler.schedule.contraction import default_contraction
from ...compiler.schedule.contraction_nest import Choice, Roles, all_roles
from ...compiler.schedule.legality import check_legal
from ...compiler.schedule.product_rows import find_product_rows, schedule_product_rows
from ...compiler.schedule.strips import schedule_strips, strip_products
from ...compiler.schedule.windows import Strips, schedule_windows, window_strips
from ...errors import ScheduleError
from ...ir.loops import Scheduled
from ...ir.program import Program
from .contraction import ContractionSketch
from .knobs import Sketch, Value, knob

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 56)  # of results
BLOCKS = (1, 2, 3, 4, 5, 6, 8)  # vectors of queries


class StripsSketch(ContractionSketch):
    """Decisions about the products of a strip; everything else is as the compiler has it."""

    alone = False

    def __init__(self, whole: Program, products: Program, target: Target, packable: frozenset[str], choice: Choice, roles: Roles) -> None:
        super().__init__(products, target, packable & {b.name for b in products.inputs}, 1, choice, roles)
        self.name, self.whole, self._outer_packable = "strips", whole, packable

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        """The products are checked on their own: how strips share loops is beyond what the rules of legality describe."""
        super().scheduled(values)
        s = schedule_strips(self.whole, self.target, self._outer_packable, self.decided(values))
        if s is None:
            raise ScheduleError(f"{self.whole.name} is no convolution in strips")
        return s


class ProductRowsSketch(ContractionSketch):
    """Decisions about the product, whose blocks of rows stand outermost; what follows along the rows is as the compiler has it."""

    alone = False

    def __init__(self, whole: Program, products: Program, target: Target, packable: frozenset[str], choice: Choice, roles: Roles) -> None:
        super().__init__(products, target, packable & {b.name for b in products.inputs}, 1, choice, roles)
        self.name, self.whole = "product_rows", whole

    def canonical(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Which blocks come first is no decision here; without blocks, tiles of rows do."""
        v = dict(zip((k.name for k in self.knobs), super().canonical(values), strict=True))
        first = {k.name: k.default for k in self.knobs if k.name == "outer" or k.name == "order" and not v["m_block"]}
        return tuple((v | first).values())

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        s = schedule_product_rows(self.whole, self.target, self.packable, self.decided(values))
        if s is None:
            raise ScheduleError(f"{self.whole.name} is no product with computes along its rows")
        check_legal(s)
        return s


class AttentionSketch(Sketch):
    """vectors: of queries in a block that goes through all stages at once."""

    def __init__(self, p: Program, target: Target, default: int, most: int) -> None:
        super().__init__("attention", [knob("vectors", [n for n in BLOCKS if n <= most], default, True)])
        self.program, self.target = p, target

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        s = schedule_attention(self.program, self.target, cast(int, values[0]))
        if s is None:
            raise ScheduleError(f"{self.program.name} is no attention")
        check_legal(s)
        return s


class WindowsSketch(Sketch):
    """rows: results of a strip. blocks: of channels that go together."""

    def __init__(self, p: Program, target: Target, packable: frozenset[str], default: Strips, most: int, blocks: list[int]) -> None:
        super().__init__("windows", [knob("rows", [n for n in ROWS if n <= most], default.rows, True),
                                     knob("blocks", blocks, default.blocks, True)])
        self.program, self.target, self._outer_packable = p, target, packable

    def scheduled(self, values: tuple[Value, ...]) -> Scheduled:
        """How strips share loops is beyond what the rules of legality describe."""
        s = schedule_windows(self.program, self.target, self._outer_packable, Strips(cast(int, values[0]), cast(int, values[1])))
        if s is None:
            raise ScheduleError(f"{self.program.name} is no sum over windows of a convolution")
        return s


def composed_sketches(p: Program, target: Target, packable: frozenset[str]) -> list[Sketch]:
    """The sketch of such a program; none for other programs."""
    if any(0 in c.buffer.shape for c in p.computes):
        return []
    if (found := attention_vectors(p, target)) is not None:
        return [AttentionSketch(p, target, *found)]
    if (windows := window_strips(p, target, packable)) is not None:
        return [WindowsSketch(p, target, packable, *windows)]
    if (rows := find_product_rows(p, target, packable)) is not None:
        return [ProductRowsSketch(p, rows.product, target, packable, rows.choice, rows.roles)]
    products = strip_products(p)
    if products is None:
        return []
    inside = packable & {b.name for b in products.inputs}
    chosen = default_contraction(products, target, inside)
    if chosen is None:
        return []
    choice = replace(chosen[0], passes=1)
    if not choice.pack:
        choice = replace(choice, fetch_wide=False, fetch_narrow=False)
    return [StripsSketch(p, products, target, packable, choice, all_roles(products.computes[0], inside)[0])]
