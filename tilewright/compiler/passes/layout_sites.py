"""Convolutions whose images may be plain or in blocks of channels, where the better one is not certain: sites of kind `layout`.

    plain     lanes are points of a row: nothing is wasted on channels that do not fill a block, and nothing is copied where what
              stands before and behind is plain
    blocked   lanes are channels: right for strides, small images and Winograd

A site is a region: such convolutions and the maps, pools and joins between them, because what one costs depends on what its
neighbours have. Its ways name the form of each convolution, in order: "plain", "2 plain, 1 blocked". Closed-form estimates in
cycles of one core say which ways are worth a trial, and in which order; no measurements at compile time. No way is another
algorithm, but sums are taken in another order.
"""
from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...backends.target import Target
from ...ir.graph import Graph, Node, Value
from ...ir.op import OPS
from ...ir.ops.conv import ConvAttrs
from ...ir.ops.elementwise import Map
from ...ir.ops.pool import POOLS
from ...ir.ops.slices import SliceAttrs
from ...ir.ops.upsample import FactorAttrs
from ...ir.ops.window import WindowAttrs
from ...ir.types import F32
from ..schedule.contraction import product_cycles
from ..sites import Site, Sites, part
from .fuse_siblings import constants_first
from .winograd_choice import Layer, best_form, form_cycles

PLAIN, BLOCKED = "plain", "blocked"
MIN_GROUP = 4     # narrower groups leave most lanes of a vector empty
MIN_CHANNELS = 8  # fewer output channels than this waste more lanes than blocks are worth
WIDE = 14         # points of a row that make a tile of their own
FAR = 1.6         # times the cycles of blocks: a plain convolution above that is not open
NEAR = 1.25       # times the cycles of the convolutions that a way changes: estimates above that are worth no trial
MOST_WAYS = 8
MOST_CONVOLUTIONS = 8  # of a region: more are cut, in the order of the graph
TAILS = 1.2       # a plain convolution's cycles over its product's: rows that no vector divides, loads across lines
LANES = 1.5       # those of groups in a block: lanes are moved beside the products
ENTER, LEAVE = 0.3, 0.8  # cycles to copy one element into blocks, and out of them (measured on AVX-512)
Forms = tuple[str, ...]


def forms_of(n: Node, c: int) -> Forms:
    """The forms that a convolution's images can have, the heuristic's first; () where it is no 2-D convolution of floats that
    computes anything. c: channels of a block."""
    x, w, a, out = n.operands[0].type, n.operands[1].type, n.attrs, n.outputs[0].type
    if n.op != "conv" or not isinstance(a, ConvAttrs) or out.dtype != F32 or out.rank != 4 or 0 in (out.size, x.size, w.size):
        return ()
    g, o, i = a.groups, out.shape[1], w.shape[1]
    if g > 1 and g == o == x.shape[1]:
        return BLOCKED, PLAIN
    if g > 1 and o // g == i < c and c % i == 0:  # lanes are the channels of a group, or points: plain images, long rows, neighbours
        blocked = 2 * i >= c or i >= MIN_GROUP and (a.strides[1] > 1 or out.shape[3] < c)
        return (BLOCKED, PLAIN) if blocked else (PLAIN, BLOCKED)
    if g > 1 and (i % c or (o // g) % c):
        return (PLAIN,)
    return (PLAIN, BLOCKED) if o < MIN_CHANNELS else (BLOCKED, PLAIN)


def reads_plain(n: Node, c: int) -> bool:
    """Whether a convolution into blocks can read a plain image as it is."""
    assert isinstance(n.attrs, ConvAttrs)
    return n.attrs.groups == 1 and n.operands[1].type.shape[1] < c


def skips(n: Node) -> bool:
    """Whether a pool's neighbours along a row of a plain image are no neighbours in memory, so that only channels can be lanes."""
    a = n.attrs
    if n.op not in POOLS or not isinstance(a, WindowAttrs):
        return False
    x = n.operands[0].type
    return x.rank == 4 and len(a.strides) == 2 and a.strides[1] > 1 and x.dtype == F32 and x.shape[1] >= MIN_CHANNELS and x.size > 0


def decide_forms(g: Graph, c: int, target: Target, strict: bool, sites: Sites) -> dict[str, str]:
    """The result of each 2-D convolution -> the form of its images."""
    legal = {n.outputs[0].name: f for n in g.nodes if n.op == "conv" and (f := forms_of(n, c))}
    out = {name: f[0] for name, f in legal.items()}
    _, static = constants_first(g)
    cycles = {n.outputs[0].name: cycles_of(n, c, target, strict) for n in g.nodes
              if len(legal.get(n.outputs[0].name, ())) > 1 and all(v.name in static for v in n.operands[1:])}
    cycles = {name: (plain, blocked) for name, (plain, blocked) in cycles.items() if plain <= FAR * blocked}
    if not cycles:
        return out
    blocked, heuristic = _in_blocks(g, out, static, c), dict(out)
    found = [Region.of(g, nodes, cycles, static, blocked, c) for nodes in regions(g, cycles, static)]
    changed = {name for r in found for name in r.changed(heuristic)}  # the others only make regions large
    for nodes in regions(g, changed, static):
        r = Region.of(g, nodes, {name: cycles[name] for name in changed}, static, blocked, c)
        own = tuple(heuristic[name] for name in r.convolutions)
        if len(ways := r.ways(own)) > 1:
            inside = frozenset(v for v, b in (r.entries | r.exits).items() if b)
            options = tuple(map(name_of, ways))
            chosen = sites.choose(Site("layout", options, name_of(own), lambda nodes=nodes, inside=inside: part(nodes, static, c, inside)))
            out |= zip(r.convolutions, ways[options.index(chosen)], strict=True)
    return out


def name_of(forms: Forms) -> str:
    """"plain", "2 plain, 1 blocked"."""
    runs = [(form, len(tuple(run))) for form, run in groupby(forms)]
    return runs[0][0] if len(runs) == 1 else ", ".join(f"{n} {form}" for form, n in runs)


# -- regions -----------------------------------------------------------------------------------------------------------
def regions(g: Graph, open_: Container[str], static: frozenset[str]) -> list[list[Node]]:
    """Open convolutions with what follows them and what joins them, in the order of the graph."""
    home: dict[str, int] = {}
    members: dict[int, list[int]] = {}
    count: dict[int, int] = {}
    for k, n in enumerate(g.nodes):
        name = n.outputs[0].name
        near = [v for v in n.operands if v.name in home]
        if name in open_:
            r = home.get(n.operands[0].name)
            if r is None or count[r] == MOST_CONVOLUTIONS:
                r = k
            count[r] = count.get(r, 0) + 1
        elif near and keeps(n) and (isinstance(OPS[n.op], Map) or all(v.name in home for v in images(n, static))):
            first, *others = dict.fromkeys(home[v.name] for v in near)
            r = first
            for other in others:
                if count[r] + count[other] <= MOST_CONVOLUTIONS:
                    count[r] += count.pop(other)
                    members[r] += members.pop(other)
                    home |= {v: r for v, where in home.items() if where == other}
        else:
            continue
        home[name] = r
        members.setdefault(r, []).append(k)
    return [[g.nodes[k] for k in sorted(found)] for found in members.values()]


def keeps(n: Node) -> bool:
    """Whether a node's result is in the layout of the images it reads, whichever that is."""
    a, out = n.attrs, n.outputs[0].type
    if len(n.outputs) > 1 or out.rank != 4 or out.dtype != F32:
        return False
    if isinstance(OPS[n.op], Map) or n.op in POOLS:
        return True
    match n.op:
        case "pad":
            return a.before[1] == a.after[1] == 0  # type: ignore[attr-defined]
        case "repeat":
            return isinstance(a, FactorAttrs) and a.factors[:2] == (1, 1)
        case "slice":
            return isinstance(a, SliceAttrs) and a.sizes[1] == n.operands[0].type.shape[1] and a.steps[1] == 1
        case "reduce":
            return set(a.axes) == {2, 3} and a.keepdims  # type: ignore[attr-defined]
        case "resample":
            return a.axis in (2, 3)  # type: ignore[attr-defined]
    return n.op == "concat"


def images(n: Node, static: frozenset[str]) -> list[Value]:
    return [v for v in n.operands if v.type.rank == 4 and v.name not in static]


def _in_blocks(g: Graph, own: Mapping[str, str], static: frozenset[str], c: int) -> frozenset[str]:
    """The values that the heuristic's layouts leave in blocks."""
    found: set[str] = set()
    for n in g.nodes:
        out = n.outputs[0]
        if out.name in own:
            blocked = own[out.name] == BLOCKED
        elif n.op == "from_blocked":
            blocked = n.operands[0].type.shape[-1] == c
        else:
            blocked = skips(n) or keeps(n) and any(v.name in found for v in images(n, static))
        if blocked:
            found.add(out.name)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Region:
    """convolutions: names of their results, in order. cycles: of each, plain and blocked. entries: images that come from outside, exits:
    results that nobody inside reads; whether they are in blocks there."""

    nodes: Sequence[Node]
    convolutions: tuple[str, ...]
    cycles: Mapping[str, tuple[float, float]]
    static: frozenset[str]
    entries: dict[str, bool]
    exits: dict[str, bool]
    block: int

    @staticmethod
    def of(g: Graph, nodes: Sequence[Node], cycles: Mapping[str, tuple[float, float]], static: frozenset[str], blocked: frozenset[str],
           c: int) -> Region:
        made = {n.outputs[0].name for n in nodes}
        read = {v.name for n in nodes for v in n.operands}
        users = g.users()

        def wanted(name: str) -> bool:
            return any(u.op == "to_blocked" or u.outputs[0].name in blocked for u in users.get(name, ()))
        entries = {v.name: v.name in blocked for n in nodes for v in images(n, static) if v.name not in made}
        exits = {name: wanted(name) for name in sorted(made - read)}
        return Region(nodes, tuple(n.outputs[0].name for n in nodes if n.outputs[0].name in cycles), cycles, static, entries, exits, c)

    def ways(self, own: Forms) -> list[Forms]:
        """Those that the estimate does not call hopeless, the best first; the heuristic's is always one of them."""
        found = sorted((self.estimate(f), f) for f in dict.fromkeys(_patterns(own)))
        usual = self.estimate(own)
        kept = [f for cycles, f in found if cycles - usual <= (NEAR - 1) * self._touched(own, f)][:MOST_WAYS]
        return kept if own in kept else [*kept, own]

    def changed(self, own: Mapping[str, str]) -> set[str]:
        """The convolutions that some way changes."""
        usual = tuple(own[name] for name in self.convolutions)
        return {name for way in self.ways(usual) for name, form in zip(self.convolutions, way, strict=True) if form != own[name]}

    def _touched(self, own: Forms, way: Forms) -> float:
        """Cycles of the convolutions that a way changes, as the heuristic has them."""
        return sum(self.cycles[name][a == BLOCKED] for name, a, b in zip(self.convolutions, own, way, strict=True) if a != b)

    def estimate(self, forms: Forms) -> float:
        """Cycles of the convolutions and of the copies between layouts, each made once."""
        form = dict(zip(self.convolutions, forms, strict=True))
        blocked, copied, total = dict(self.entries), set[tuple[str, bool]](), 0.0

        def want(v: Value, b: bool) -> float:
            if blocked.get(v.name, b) == b or (v.name, b) in copied:
                return 0.0
            copied.add((v.name, b))
            return v.type.size * (ENTER if b else LEAVE)
        for n in self.nodes:
            out, x = n.outputs[0], n.operands[0]
            if out.name in form:
                b = form[out.name] == BLOCKED
                total += self.cycles[out.name][b] + (0.0 if b and reads_plain(n, self.block) else want(x, b))
            else:
                read = images(n, self.static)
                b = skips(n) or any(blocked.get(v.name, False) for v in read)
                total += sum(want(v, b) for v in read)
            blocked[out.name] = b
            total += want(out, self.exits[out.name]) if out.name in self.exits else 0.0
        return total


def _patterns(own: Forms) -> Iterator[Forms]:
    """The heuristic's forms, all alike, the first or last few plain, and one changed."""
    yield own
    n = len(own)
    for k in range(n + 1):
        yield (PLAIN,) * k + (BLOCKED,) * (n - k)
        yield (BLOCKED,) * k + (PLAIN,) * (n - k)
    for k, form in enumerate(own):
        yield (*own[:k], BLOCKED if form == PLAIN else PLAIN, *own[k + 1:])


# -- estimates ---------------------------------------------------------------------------------------------------------
def cycles_of(n: Node, c: int, target: Target, strict: bool) -> tuple[float, float]:
    """Of a convolution on plain images, and on images in blocks; infinite where lanes are not neighbours in memory."""
    a, (_, i, kh, kw), (batch, o, h, w) = n.attrs, n.operands[1].type.shape, n.outputs[0].type.shape
    assert isinstance(a, ConvAttrs)
    g, taps = a.groups, kh * kw
    rows, points = (1, h * w) if taps == 1 and a.strides == (1, 1) and not any(a.pads) else (h, w)
    plain = TAILS * batch * g * rows * product_cycles(o // g, -(-points // c), taps * i, target)
    return (plain if a.strides[1] == 1 else float("inf")), batch * _blocked_cycles(n, c, target, strict)


def _blocked_cycles(n: Node, c: int, target: Target, strict: bool) -> float:
    """Of one image."""
    a, (_, i, kh, kw), (_, o, h, w) = n.attrs, n.operands[1].type.shape, n.outputs[0].type.shape
    assert isinstance(a, ConvAttrs)
    g, taps = a.groups, kh * kw
    if g > 1 and o // g < c:  # one filter a channel, or groups in a block
        return float(-(-o // c) * h * w * taps) * (1 if i == 1 else LANES * i)
    times, points = (h, w) if w >= WIDE else (1, h * w)
    direct = g * times * product_cycles(points, -(-(o // g) // c), taps * i, target)
    if strict or (kh, kw) != (3, 3) or g > 1 or a.strides != (1, 1) or reads_plain(n, c):
        return direct
    layer = Layer(1, i, o, h, w)
    form = best_form(layer, target)
    return direct if form is None else min(direct, form_cycles(layer, form, target))
