"""Schedule of a product whose rows are reduced and normalised at once: y = layer_norm(x @ w + b + r).

    parallel blocks of rows {
      for n-tiles, m-tiles:  microkernel { t = x * w }, b, r       as any contraction (contraction_nest.py)
      for rows:              mean = sum of t;  inv = 1 / deviation;  y = (t - mean) * inv * scale + bias
    }

t lives in memory of the thread, a block of it; where others need it, it is a result beside y. The weights go by once for each block,
from the second-level cache; the block is as small as they allow, for what follows the product finds it in the first-level cache.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...backends.target import Target
from ...ir.kinds import is_contraction
from ...ir.loops import Loop, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .contraction import PASS_SHARES, default_contraction
from .contraction_nest import Choice, Roles, all_roles, operand_bytes, schedule_nest
from .packing import packed_inputs
from .parallel import mark_parallel, undivided
from .rows import choose_row, schedule_rows
from .rows_nest import rename_shared, row_stage, shared_depth


@dataclass(frozen=True, slots=True)
class ProductRows:
    """product: a program of its own. rows: what follows it along its rows. Their leading axes, all but the product's last one, are the
    same. choice: the default decisions about the product."""

    product: Program
    rows: tuple[Compute, ...]
    choice: Choice
    roles: Roles

    @property
    def depth(self) -> int:
        return len(self.roles.m)


def find_product_rows(p: Program, target: Target, packable: frozenset[str]) -> ProductRows | None:
    """What `p` consists of, where it is a product and computes along the rows of it; None for any other program."""
    if not _product_first(p) or any(0 in c.buffer.shape for c in p.computes):
        return None
    depth = shared_depth(p)
    if depth != len(p.computes[0].axes) - 1 or depth < 1:
        return None
    first, *rest = rename_shared(p, depth).computes
    own, packable = _alone(p, first), _unshared(packable, rest)
    found = default_contraction(own, target, packable)
    if found is None:
        return None
    choice, r = found[0], all_roles(first, packable)[found[0].roles]
    if r.m != first.axes[:depth] or r.n or r.batch:
        return None
    if not choice.pack:
        choice = replace(choice, fetch_wide=False, fetch_narrow=False)  # without a packed operand they mean nothing
    choice = replace(choice, order="n", outer="m", n_block=0, m_block=_block(choice, r, target), keep=True, passes=1)
    return ProductRows(own, tuple(rest), choice, r)


def schedule_product_rows(p: Program, target: Target, packable: frozenset[str], choice: Choice | None = None) -> Scheduled | None:
    """The schedule of a product with computes along its rows; None for any other program. `choice`: the decisions about the product in
    place of the default; blocks of rows come first whatever it says. Raises ScheduleError where it does not fit."""
    found = find_product_rows(p, target, packable)
    if found is None:
        return _one_after_the_other(p, target, packable) if _product_first(p) and choice is None else None
    d = replace(choice or found.choice, outer="m", passes=1)
    s = schedule_nest(found.product, target, _unshared(packable, found.rows), d)
    st = s.stages[0]
    blocks = _blocks(st, found.roles)
    head = mark_parallel([Loop(x.axis) for x in blocks], len(blocks))
    inner = undivided(x for x in st.loops if x not in blocks)
    splits = [r for r in st.relations if isinstance(r, Split) and r.outer in {x.axis for x in head}]
    stages = (replace(st, loops=(*head, *inner)), *(_along(c, head, splits, found.depth, target) for c in found.rows))
    program = Program(p.name, packed_inputs(p, found.product, s), p.outputs, tuple(x.compute for x in stages))
    return Scheduled(program, stages, s.packs)


def _product_first(p: Program) -> bool:
    first, *rest = p.computes
    return bool(rest) and is_contraction(first) and not any(map(is_contraction, rest))


def _unshared(packable: frozenset[str], rest: Sequence[Compute]) -> frozenset[str]:
    """What may be packed: what follows the product reads operands as they are."""
    return packable - {b.name for c in rest for b in c.reads}


def _alone(p: Program, product: Compute) -> Program:
    return Program("product", tuple(b for b in p.inputs if b in product.reads), (product.buffer,), (product,))


def _block(d: Choice, r: Roles, target: Target) -> int:
    """Tiles of rows in a block: a few where the weights stay in the first-level cache beside it, more where they come from the second,
    and always enough blocks for threads to share."""
    if len(r.m) != 1:
        return 0  # tiles are blocks: the shared loops are those over tiles
    weights = operand_bytes(r.wide)
    room = target.l1d // 16 if weights <= target.l1d // 2 else target.l1d // 2 if weights <= target.l2 // 8 else target.l2 // 16
    tile = d.columns * r.vector.extent * r.wide.dtype.bytes
    tiles = -(-r.m[0].extent // d.columns)
    return max(1, min(room // tile, tiles // PASS_SHARES)) if tiles > 1 else 0


def _blocks(st: Stage, r: Roles) -> list[Loop]:
    """The loops over blocks of rows, one for each axis of them: the axis itself, or the outer part of its first split."""
    outer = {x.outer for x in st.relations if isinstance(x, Split) and x.parent in r.m}
    return [x for x in st.loops[:st.tensorize] if x.axis in r.m or x.axis in outer]


def _along(c: Compute, head: tuple[Loop, ...], splits: list[Split], depth: int, target: Target) -> Stage:
    """What follows the product along its rows, inside the loops over blocks: the rest of a block's rows, then one row."""
    own = row_stage(c, choose_row(c, depth, target), depth, 0)
    return Stage(c, (*head, *(Loop(s.inner) for s in splits), *own.loops[depth:]), (*splits, *own.relations), len(head))


def _one_after_the_other(p: Program, target: Target, packable: frozenset[str]) -> Scheduled | None:
    """The product as a contraction, then the rest by rows, sharing no loops: for products by weights whose rows are no axes of both."""
    first, *rest = p.computes
    own = _alone(p, first)
    found = default_contraction(own, target, _unshared(packable, rest) & {b.name for b in own.inputs})
    if found is None or not found[1].packs:
        return None
    after = schedule_rows(Program(p.name, (*p.inputs, first.buffer), p.outputs, tuple(rest)), target)
    stages = (*found[1].stages, *after.stages)
    program = Program(p.name, packed_inputs(p, own, found[1]), p.outputs, tuple(x.compute for x in stages))
    return Scheduled(program, stages, found[1].packs)
