"""The default schedule of any program: no search, no measurements, closed-form choices only."""
from __future__ import annotations

from ...backends.target import Target
from ...ir.loops import Scheduled
from ...ir.program import Program
from .attention import schedule_attention
from .contraction import schedule_contraction
from .product_rows import schedule_product_rows
from .rows import schedule_rows
from .strips import schedule_strips
from .transforms import schedule_transform
from .windows import schedule_windows


def default_schedule(p: Program, target: Target, packable: frozenset[str] = frozenset()) -> Scheduled:
    """`packable` names the inputs that the caller can lay out beforehand (weights)."""
    if len(p.computes) == 1 and (s := schedule_contraction(p, target, packable)) is not None:
        return s
    return (schedule_attention(p, target) or schedule_strips(p, target, packable) or schedule_windows(p, target, packable)
            or schedule_transform(p, target) or schedule_product_rows(p, target, packable) or schedule_rows(p, target))
