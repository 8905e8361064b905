"""Layouts: 2-D convolutions and what surrounds them run on images in channel blocks.

Requires: conv pads are attributes; maps, pools, reductions, concat, pad and slice in their plain 4-D forms.
Ensures:  no 1-D or 2-D float `conv` is left; values between blocked ops stay blocked, `to_blocked`/`from_blocked` stand
          only where plain and blocked parts meet. Weights are re-laid by nodes that end up in the preparation graph.

    %y = conv(%x, @w, @b) {pads=(1,1,1,1)} : f32[1,64,56,56]          (x blocked before as %xb)
    %r = relu(%y)
    ->
    %p  = pad(%xb) {before=(0,0,1,1,0)}     : f32[1,4,58,58,16]
    %yb = conv_direct(%p, @w', @b')         : f32[1,4,56,56,16]
    %rb = relu(%yb)                         : f32[1,4,56,56,16]
"""
from __future__ import annotations

from collections.abc import Sequence

from ...backends.target import Target
from ...ir.builder import GraphBuilder, rebuild
from ...ir.graph import Graph, Node, Value
from ...ir.op import OPS
from ...ir.ops.conv import ConvAttrs
from ...ir.ops.elementwise import Map
from ...ir.ops.pool import POOLS
from ...ir.ops.slices import SliceAttrs
from ...ir.ops.upsample import FactorAttrs
from ...ir.ops.winograd_strips import StripAttrs
from ...ir.ops.winograd_tiles import transform
from ...ir.types import F32, TensorType
from ..schedule.source import HEURISTIC
from ..sites import Site, Sites, part
from .dilation import Phases, phases, put_together, take_apart
from .layout_sites import BLOCKED, PLAIN, decide_forms, forms_of, reads_plain, skips
from .winograd_choice import Form, Layer, best_form, form_of, name_of, ways


def choose_layouts(g: Graph, target: Target, strict: bool = False, threads: int = 1, sites: Sites | None = None) -> Graph:
    """`g` with blocked images; the block is the target's f32 vector width. `strict`: direct sums only, no Winograd.
    `threads`: how many may take part; the results do not depend on it. `sites`: who chooses the way of each convolution
    (default: the heuristic)."""
    if not any(n.op in ("conv", "interleave") for n in g.nodes):
        return g
    return _Layouts(g, target, strict, threads, sites or Sites(HEURISTIC, target, threads)).run()


class _Layouts:
    """`blocked`: plain value name -> its blocked twin; `plain`: the other way round. Each is made on demand, once."""

    def __init__(self, g: Graph, target: Target, strict: bool, threads: int, sites: Sites):
        self.g, self.c, self.strict = g, max(4, target.vector_bytes // 4), strict
        self.target, self.threads, self.sites = target, threads, sites
        self.forms = decide_forms(g, self.c, target, strict, self.sites)
        self.readers: dict[str, list[Node]] = {}
        for n in g.nodes:
            for v in n.operands:
                self.readers.setdefault(v.name, []).append(n)
        self.blocked: dict[str, Value] = {}
        self.made_plain: dict[str, Value] = {}
        self.virtual: dict[str, Value] = {}  # plain values that exist only as blocked ones so far
        self.phases: dict[str, tuple[tuple[Value, ...], FactorAttrs]] = {}  # interleaved plain values -> their blocked parts
        self.images: dict[str, Value] = {}  # results of 1-D convolutions -> the same as images of height 1
        self.cut: dict[str, tuple[Value, SliceAttrs]] = {}  # slices of plain values -> what they are cut from
        self.repeated: dict[str, tuple[Value, tuple[int, int]]] = {}  # repeated plain values -> what is repeated, how often
        self.grouped: dict[str, Value] = {}  # plain values -> their blocked ones with dimensions taken apart by groups

    def run(self) -> Graph:
        def visit(n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
            new = self._blocked_node(n, ins, b)
            if new is not None:
                return new
            real = tuple(None if v is None else self.plain(v, b) for v in ins)
            if n.op == "conv" and n.inputs[0] is not None and n.outputs[0].type.dtype == F32 and n.outputs[0].type.rank in (3, 4):
                return self._plain_conv(n, real, b)
            return b.emit(n.op, real, n.attrs, names=[o.name for o in n.outputs]) if real != n.inputs else None

        ends: list[Value] = []

        def finish(b: GraphBuilder, outs: Sequence[Value]) -> tuple[Value, ...]:
            ends.extend(self.plain(v, b) for v in outs)
            return tuple(ends)
        return rebuild(self.g, visit, finish=finish)

    # -- conversions ---------------------------------------------------------------------------------------------------
    def plain(self, v: Value, b: GraphBuilder) -> Value:
        """The plain form of a value."""
        if v.name in self.images and v.name not in self.made_plain:
            self.made_plain[v.name] = b.op("reshape", self.plain(self.images[v.name], b), shape=v.type.shape)
        if v.name not in self.virtual:
            return self.made_plain.get(v.name, v)
        if v.name not in self.made_plain and v.name in self.cut:  # what it is cut from is made plain once for all cuts
            source, attrs = self.cut[v.name]
            self.made_plain[v.name] = b.emit("slice", [self.plain(source, b)], attrs)[0]
        if v.name not in self.made_plain:
            x = self.virtual[v.name]
            _, cb, h, w, c = x.type.shape
            if h * w == 1 and v.type.shape[1] == cb * c:
                self.made_plain[v.name] = b.op("reshape", x, shape=v.type.shape)
            else:
                self.made_plain[v.name] = b.op("from_blocked", x, block=self.c, channels=v.type.shape[1])
        return self.made_plain[v.name]

    def to_blocked(self, v: Value, b: GraphBuilder) -> Value:
        """The blocked form of a 4-D value."""
        if v.name not in self.blocked:
            n, c, h, w = v.type.shape
            if h * w == 1 and c % self.c == 0:
                self.blocked[v.name] = b.op("reshape", v, shape=(n, c // self.c, 1, 1, self.c))
            else:
                self.blocked[v.name] = b.op("to_blocked", v, block=self.c)
        return self.blocked[v.name]

    def _new(self, n: Node, x: Value, b: GraphBuilder) -> tuple[Value, ...]:
        """Registers blocked `x` as the node's result; its plain value is only a name until somebody needs it."""
        v = Value(b.fresh(n.outputs[0].name + ".plain"), n.outputs[0].type)
        self.virtual[v.name] = self.blocked[v.name] = x
        return (v,)

    # -- rules ---------------------------------------------------------------------------------------------------------
    def _blocked_node(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        """The node on blocked images, None where it stays plain."""
        if len(n.outputs) == 1 and n.outputs[0].type.rank == 3 and (made := self._signal(n, ins, b)) is not None:
            return made
        if n.op == "conv":
            return self._conv(n, ins, b)
        if n.op == "interleave":
            return self._interleave(n, ins, b)
        x = ins[0]
        if n.op == "from_blocked" and x is not None and x.type.shape[-1] == self.c:
            return self._new(n, x, b)
        if n.op == "transpose" and x is not None and x.name in self.images:
            return self._rows(n, x, b)
        if not any(v is not None and v.name in self.virtual for v in ins):
            if x is not None and skips(n):
                return self._new(n, self._pool(n, self.to_blocked(x, b), b), b)
            if x is None or not self._ends_blocked(n):
                return None
            self.to_blocked(x, b)
        elif isinstance(OPS[n.op], Map):
            return self._map(n, ins, b)
        elif x is None or x.name not in self.virtual:
            return self._concat(n, ins, b) if n.op == "concat" else None
        if n.op in ("reshape", "transpose"):
            return self._rows(n, x, b)
        xb = self.blocked[x.name]
        match n.op:
            case "to_blocked" if n.attrs.block == self.c:  # type: ignore[attr-defined]
                return (xb,)
            case "concat":
                return self._concat(n, ins, b)
            case _ if n.op in POOLS:
                return self._new(n, self._pool(n, xb, b), b)
            case "reduce" if set(n.attrs.axes) == {2, 3} and n.attrs.keepdims:  # type: ignore[attr-defined]
                return self._new(n, b.emit("reduce", [xb], n.attrs)[0], b)
            case "pad" if n.attrs.before[1] == n.attrs.after[1] == 0:  # type: ignore[attr-defined]
                a = n.attrs
                return self._new(n, b.op("pad", xb, before=(*a.before, 0), after=(*a.after, 0), mode=a.mode, value=a.value), b)  # type: ignore[attr-defined]
            case "slice" if isinstance(n.attrs, SliceAttrs) and self._whole_blocks(n.attrs, x.type.shape[1]):
                a, c = n.attrs, self.c
                starts, sizes = (a.starts[0], a.starts[1] // c, *a.starts[2:], 0), (a.sizes[0], -(-a.sizes[1] // c), *a.sizes[2:], c)
                new = self._new(n, b.op("slice", xb, starts=starts, steps=(a.steps[0], 1, *a.steps[2:], 1), sizes=sizes), b)
                self.cut[new[0].name] = (x, a)
                return new
            case "repeat" if isinstance(n.attrs, FactorAttrs) and n.attrs.factors[:2] == (1, 1):
                new = self._new(n, b.op("repeat", xb, factors=(*n.attrs.factors, 1)), b)
                self.repeated[new[0].name] = (xb, (n.attrs.factors[2], n.attrs.factors[3]))
                return new
            case "gather" if n.attrs.axis in (2, 3) and ins[1] is not None and ins[1].type.rank == 1 and ins[1].name not in self.virtual:  # type: ignore[attr-defined]
                return self._new(n, b.emit("gather", [xb, ins[1]], n.attrs)[0], b)
            case "resample" if n.attrs.axis in (2, 3) and not any(v is not None and v.name in self.virtual for v in ins[1:]):  # type: ignore[attr-defined]
                return self._new(n, b.emit("resample", [xb, *ins[1:]], n.attrs)[0], b)
        return None

    def _ends_blocked(self, n: Node) -> bool:
        """Whether a plain image is enlarged only for convolutions that read blocks. It is blocked before: an image is smaller there,
        and channels are lanes that need no gathers."""
        out = n.outputs[0].type
        if out.rank != 4 or out.dtype != F32 or out.shape[1] % self.c or not out.size:
            return False
        if not (n.op == "resample" and n.attrs.axis >= 2 or n.op == "repeat" and n.attrs.factors[:2] == (1, 1)):  # type: ignore[attr-defined]
            return False
        open_, seen, reached = [n.outputs[0].name], {n.outputs[0].name}, False
        while open_:
            for r in self.readers.get(name := open_.pop(), ()) or (None,):
                if r is None:
                    return False
                if r.op == "conv" and self.forms.get(r.outputs[0].name) == BLOCKED and r.operands[0].name == name \
                        and r.attrs.groups == 1:  # type: ignore[attr-defined]
                    reached = True
                elif r.op in ("resample", "repeat") or isinstance(OPS[r.op], Map) or r.op == "concat" and r.attrs.axis == 1:  # type: ignore[attr-defined]
                    fresh = [v.name for v in r.outputs if v.name not in seen]
                    open_ += fresh
                    seen.update(fresh)
                else:
                    return False
        return reached

    def _rows(self, n: Node, x: Value, b: GraphBuilder) -> Sequence[Value] | None:
        """Channels moved behind the points of an image, [N, H, W, C] or [N, H*W, C]: one copy of whole blocks of channels, straight from
        the blocks. An image whose points become one dimension in between is one of height 1."""
        out, image = n.outputs[0].type, self.images.get(x.name, x)
        batch, blocks, height, width, c = self.blocked[image.name].type.shape
        if image.name not in self.virtual or image.type.shape[1] != blocks * c:
            return None
        if n.op == "reshape":
            readers = self.readers.get(n.outputs[0].name, ())
            if out.shape != (batch, blocks * c, height * width) or not readers or not all(_moves_channels(r) for r in readers):
                return None
            flat = Value(b.fresh(n.outputs[0].name + ".image"), TensorType(out.dtype, (batch, blocks * c, 1, height * width)))
            self.virtual[flat.name] = self.blocked[flat.name] = b.op(
                "reshape", self.blocked[image.name], shape=(batch, blocks, 1, height * width, c))
            new = Value(b.fresh(n.outputs[0].name + ".plain"), out)
            self.images[new.name] = flat
            return (new,)
        if not _moves_channels(n) or batch * height * width == 1:
            return None
        apart = self.blocked[image.name]
        if x.type.rank == 3:
            apart = b.op("reshape", apart, shape=(batch, blocks, height * width, c))
        *points, _ = n.attrs.perm  # type: ignore[attr-defined]
        moved = b.op("transpose", apart, perm=(*points, 1, x.type.rank))
        return (b.op("reshape", moved, shape=out.shape),)

    def _signal(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        """A convolution of 1-D signals, or a map of its results, as one of images of height 1 that stay in blocks."""
        out = n.outputs[0].type
        if not (n.op == "conv" or isinstance(OPS[n.op], Map) and any(v is not None and v.name in self.images for v in ins)) or not out.size:
            return None
        flat: list[Value | None] = []
        for k, v in enumerate(ins):
            if v is None or v.type.size == 0 or n.op == "conv" and k == 2 or n.op != "conv" and v.type.size == 1:
                flat.append(None if v is None else self.plain(v, b))
            elif v.name in self.images and (n.op != "conv" or k == 0):
                flat.append(self.images[v.name])
            else:
                shape = (1,) * (3 - v.type.rank) + v.type.shape
                flat.append(b.op("reshape", self.plain(v, b), shape=(*shape[:2], 1, shape[2])))
        a = n.attrs
        if isinstance(a, ConvAttrs):
            a = ConvAttrs((1, *a.strides), (0, a.pads[0], 0, a.pads[1]), (1, *a.dilations), a.groups)
        image = Value(b.fresh(n.outputs[0].name + ".image"), TensorType(out.dtype, (*out.shape[:2], 1, out.shape[2])))
        made = self._blocked_node(Node(n.op, tuple(flat), a, (image,), n.source), tuple(flat), b)
        if made is None:
            return None
        new = Value(b.fresh(n.outputs[0].name + ".plain"), out)
        self.images[new.name] = made[0]
        return (new,)

    def _whole_blocks(self, a: SliceAttrs, channels: int) -> bool:
        """Whether a slice takes whole blocks of channels."""
        if a.sizes[1] == channels:
            return a.steps[1] == 1
        end = a.starts[1] + a.sizes[1]
        return a.steps[1] == 1 and a.starts[1] % self.c == 0 and (end % self.c == 0 or end == channels) and a.sizes[1] > 0

    def _interleave(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value]:
        """Phases of images in blocks stay apart as long as maps follow: they end in the kernels that make the phases."""
        parts = [v for v in ins if v is not None]
        assert isinstance(n.attrs, FactorAttrs)
        if n.outputs[0].type.rank == 4 and n.attrs.factors[:2] == (1, 1) and all(v.name in self.virtual for v in parts):
            return self._interleaved(n, [self.blocked[v.name] for v in parts], n.attrs, b)
        return OPS["interleave"].decompose(n.attrs, b, *(self.plain(v, b) for v in parts)) or ()

    def _interleaved(self, n: Node, parts: Sequence[Value], a: FactorAttrs, b: GraphBuilder) -> tuple[Value, ...]:
        new = self._new(n, b.op("interleave", *parts, factors=(*a.factors, 1)), b)
        self.phases[new[0].name] = (tuple(parts), a)
        return new

    def _map(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        out = n.outputs[0].type
        if out.rank != 4 or not any(v is not None and v.name in self.virtual and v.type.shape[1] == out.shape[1] for v in ins):
            return None
        if (apart := self._map_of_phases(n, ins, b)) is not None:
            return apart
        operands: list[Value | None] = []
        for v in ins:
            if v is None or v.type.size == 1 and v.name not in self.virtual:
                operands.append(v if v is None or v.type.rank <= 1 else b.op("reshape", v, shape=(1,)))
                continue
            if v.type.rank < 4:
                v = b.op("reshape", v, shape=(1,) * (4 - v.type.rank) + v.type.shape)
            if v.type.shape[1] == 1 and out.shape[1] != 1:
                v = self.plain(v, b)
                operands.append(b.op("reshape", v, shape=(*v.type.shape, 1)))
            else:
                operands.append(self.to_blocked(v, b))
        known = [None if v is None else self.grouped.get(v.name) for v in ins]
        if inner := next((y.type.shape for y in known if y is not None), None):
            apart = [y if y is not None and y.type.shape == inner else by_groups(v, inner, b) for y, v in zip(known, operands, strict=True)]
            return self._regrouped(n, b.emit(n.op, apart, n.attrs)[0], b)
        return self._new(n, b.emit(n.op, operands, n.attrs)[0], b)

    def _regrouped(self, n: Node, y: Value, b: GraphBuilder) -> tuple[Value, ...]:
        """Registers `y`, whose dimensions groups take apart, as the node's result. Maps go on with `y`: they end in its kernel."""
        batch, _, height, width = n.outputs[0].type.shape
        new = self._new(n, b.op("reshape", y, shape=(batch, y.type.size // (batch * height * width * self.c), height, width, self.c)), b)
        if y.type.rank == 6 or batch == 1:
            self.grouped[new[0].name] = y
        return new

    def _map_of_phases(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        """A map of an interleaved image and of values that are the same at all its points, on each phase."""
        where = [k for k, v in enumerate(ins) if v is not None and v.name in self.phases]
        flat = all(k in where or v is None or v.type.rank < 3 and v.type.size == 1 or v.type.rank == 4 and v.type.shape[2:] == (1, 1)
                   and v.type.shape[1] == n.outputs[0].type.shape[1] for k, v in enumerate(ins))
        if len(where) != 1 or not flat:
            return None
        image = ins[where[0]]
        assert image is not None
        parts, a = self.phases[image.name]
        rest = [v if v is None or k in where else b.op("reshape", v, shape=(1,)) if v.type.size == 1 and v.name not in self.virtual
                else self.to_blocked(v, b) for k, v in enumerate(ins)]
        return self._interleaved(n, [b.emit(n.op, [x if k in where else v for k, v in enumerate(rest)], n.attrs)[0] for x in parts], a, b)

    def _pool(self, n: Node, xb: Value, b: GraphBuilder) -> Value:
        from dataclasses import replace
        a = n.attrs
        r = len(a.pads) // 2  # type: ignore[attr-defined]
        wide = replace(a, kernel=(*a.kernel, 1), strides=(*a.strides, 1), pads=(*a.pads[:r], 0, *a.pads[r:], 0),  # type: ignore[attr-defined, call-arg, type-var]
                       dilations=(*a.dilations, 1), sizes=(*a.sizes, self.c))  # type: ignore[attr-defined]
        return b.emit(n.op, [xb], wide)[0]

    def _concat(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        axis = n.attrs.axis  # type: ignore[attr-defined]
        parts = [v for v in ins if v is not None]
        if n.outputs[0].type.rank != 4:
            return None
        if axis == 1 and any(v.type.shape[1] % self.c for v in parts[:-1]):
            return self._concat_lanes(n, parts, b)
        if axis != 1 and not all(v.name in self.virtual for v in parts):
            return None
        return self._new(n, b.op("concat", *(self.to_blocked(v, b) for v in parts), axis=axis), b)

    def _concat_lanes(self, n: Node, parts: Sequence[Value], b: GraphBuilder) -> Sequence[Value] | None:
        """Channels that do not fill blocks move to other lanes, repeated images at the same time; runs shorter than a quarter
        of a vector do not pay."""
        channels = tuple(v.type.shape[1] for v in parts)
        if any(m % (self.c // 4) for m in channels[:-1]) or not all(v.name in self.virtual for v in parts):
            return None
        sources = [self.repeated.get(v.name, (self.blocked[v.name], (1, 1))) for v in parts]
        factors = tuple(f for _, pair in sources for f in pair)
        return self._new(n, b.op("concat_blocked", *(x for x, _ in sources), channels=channels, factors=factors), b)

    # -- convolutions --------------------------------------------------------------------------------------------------
    def _conv(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        x, w, bias = ins[0], ins[1], ins[2] if len(ins) > 2 else None
        assert x is not None and w is not None and isinstance(n.attrs, ConvAttrs)
        a, out = n.attrs, n.outputs[0].type
        legal = forms_of(n, self.c)
        if not legal or self.forms.get(n.outputs[0].name, legal[0]) == PLAIN:
            return None
        w = self.plain(w, b)
        bias = None if bias is None else self.plain(bias, b)
        g, o, i = a.groups, out.shape[1], w.type.shape[1]
        if g > 1 and g == o == x.type.shape[1]:
            return self._new(n, self._depthwise(x, w, bias, a, b), b)
        if g > 1 and o // g == i < self.c:
            return self._regrouped(n, self._narrow_groups(x, w, bias, a, b), b)
        c = self.c
        small = x.name not in self.virtual and x.name not in self.blocked and reads_plain(n, c)
        xi = self.plain(x, b) if small else self.to_blocked(x, b)
        if not small and (form := self._form(n, w, x.type, out)) is not None:
            return self._new(n, self._winograd(xi, w, bias, self._phases(x.type, out, a), form, b), b)
        xi = self._padded(xi, a, b)
        if g > 1:
            xi = b.op("reshape", xi, shape=(xi.type.shape[0] * g, xi.type.shape[1] // g, *xi.type.shape[2:]))
        w5, bias2 = self._grouped(w, bias, g, -(-(o // g) // c) * c, b)
        y = b.op("conv_direct", xi, w5, bias2, strides=a.strides, dilations=a.dilations, in_block=0 if small else c, out_block=c)
        return self._regrouped(n, y, b) if g > 1 else self._new(n, y, b)

    def _form(self, node: Node, w: Value, x: TensorType, out: TensorType) -> Form | None:
        """How Winograd computes the convolution; None where it cannot, may not, or is no faster than the direct sum."""
        o, i, *kernel = w.type.shape
        a = node.attrs
        assert isinstance(a, ConvAttrs)
        if self.strict or kernel != [3, 3] or a.groups != 1 or a.strides != (1, 1):
            return None
        n, parts = x.shape[0], self._phases(x, out, a)
        layer, whole = parts.layer(n, i, o), Layer(n, i, o, *parts.result)
        weights = [v.name for v in node.operands[1:]]
        own = name_of(best_form(layer, self.target, self.threads, whole, parts.cycles(n, i + o)))
        options = tuple(dict.fromkeys((*ways(layer, self.target, self.threads), own)))
        return form_of(self.sites.choose(Site("convolution", options, own, lambda: part([node], weights, self.c))))

    def _phases(self, x: TensorType, out: TensorType, a: ConvAttrs) -> Phases:
        (h, w), (p, q), (dh, dw) = x.shape[2:4], out.shape[2:4], a.dilations
        return phases((h, w), (p, q), (dh, dw), a.pads)

    def _winograd(self, x: Value, w: Value, bias: Value | None, p: Phases, form: Form, b: GraphBuilder) -> Value:
        c, o, (h, wd) = self.c, w.type.shape[0], p.outputs
        strips = StripAttrs(h, wd, form.tile, form.rows or transform(form.tile).count(h))
        x, (top, left) = take_apart(b, x, p), p.before
        bottom, right = (full - before - size for full, before, size in zip(strips.padded, (top, left), x.type.shape[2:4], strict=True))
        x = b.op("pad", x, before=(0, 0, top, left, 0), after=(0, 0, bottom, right, 0)) if any((top, left, bottom, right)) else x
        rows = -(-o // c) * c
        if rows != o:
            w = b.op("pad", w, before=(0,) * 4, after=(rows - o, 0, 0, 0))
            bias = None if bias is None else b.op("pad", bias, before=(0,), after=(rows - o,))
        b2 = None if bias is None else b.op("reshape", bias, shape=(rows // c, c))
        u = b.op("winograd_weights", w, tile=form.tile)
        if form.rows:
            return put_together(b, b.emit("conv_winograd", [x, w, u, b2], strips)[0], p)
        m = b.op("winograd_multiply", b.op("winograd_input", x, tile=form.tile), u)
        return put_together(b, b.op("winograd_output", m, x, w, b2, height=h, width=wd, tile=form.tile), p)

    def _grouped(self, w: Value, bias: Value | None, g: int, rows: int, b: GraphBuilder) -> tuple[Value, Value | None]:
        """w as [G, rows, I, kh, kw] and bias as [G, rows], both padded with zeros to `rows` output channels."""
        o = w.type.shape[0] // g
        w5 = b.op("reshape", w, shape=(g, o, *w.type.shape[1:]))
        b2 = None if bias is None else b.op("reshape", bias, shape=(g, o))
        if rows != o:
            w5 = b.op("pad", w5, before=(0,) * 5, after=(0, rows - o, 0, 0, 0))
            b2 = None if b2 is None else b.op("pad", b2, before=(0, 0), after=(0, rows - o))
        return w5, b2

    def _padded(self, x: Value, a: ConvAttrs, b: GraphBuilder) -> Value:
        if not any(a.pads):
            return x
        tail = (0,) * (x.type.rank - 4)
        return b.op("pad", x, before=(0, 0, *a.pads[:2], *tail), after=(0, 0, *a.pads[2:], *tail))

    def _depthwise(self, x: Value, w: Value, bias: Value | None, a: ConvAttrs, b: GraphBuilder) -> Value:
        c, (o, _, kh, kw) = self.c, w.type.shape
        blocks = -(-o // c)
        if o % c:
            w = b.op("pad", w, before=(0,) * 4, after=(blocks * c - o, 0, 0, 0))
            bias = None if bias is None else b.op("pad", bias, before=(0,), after=(blocks * c - o,))
        w4 = b.op("transpose", b.op("reshape", w, shape=(blocks, c, kh, kw)), perm=(0, 2, 3, 1))
        b2 = None if bias is None else b.op("reshape", bias, shape=(blocks, c))
        return b.op("conv_depthwise", self._padded(self.to_blocked(x, b), a, b), w4, b2, strides=a.strides, dilations=a.dilations,
                    in_block=c, out_block=c)

    def _narrow_groups(self, x: Value, w: Value, bias: Value | None, a: ConvAttrs, b: GraphBuilder) -> Value:
        """Several groups in a block of channels; groups that fill the last block have no weights."""
        c, (o, q, kh, kw) = self.c, w.type.shape
        blocks = -(-o // c)
        if o % c:
            w = b.op("pad", w, before=(0,) * 4, after=(blocks * c - o, 0, 0, 0))
            bias = None if bias is None else b.op("pad", bias, before=(0,), after=(blocks * c - o,))
        w6 = b.op("reshape", w, shape=(blocks, c // q, q, q, kh, kw))
        b3 = None if bias is None else b.op("reshape", bias, shape=(blocks, c // q, q))
        return b.op("conv_grouped", self._padded(self.to_blocked(x, b), a, b), w6, b3, strides=a.strides, dilations=a.dilations,
                    in_block=c, out_block=c)

    def _plain_conv(self, n: Node, ins: tuple[Value | None, ...], b: GraphBuilder) -> Sequence[Value] | None:
        """Plain images: 1-D signals as 2-D images of height 1, groups on the batch axis, pads as an op of their own."""
        x, w, bias = ins[0], ins[1], ins[2] if len(ins) > 2 else None
        assert x is not None and w is not None and isinstance(n.attrs, ConvAttrs)
        a, out = n.attrs, n.outputs[0].type
        if out.size == 0 or x.type.size == 0 or w.type.size == 0:
            return None
        if out.rank == 3:
            flat = ConvAttrs((1, *a.strides), (0, a.pads[0], 0, a.pads[1]), (1, *a.dilations), a.groups)
            ins2 = (b.op("reshape", x, shape=(*x.type.shape[:2], 1, x.type.shape[2])),
                    b.op("reshape", w, shape=(*w.type.shape[:2], 1, w.type.shape[2])), bias)
            y4 = b.fresh(n.outputs[0].name + ".image")
            image = Node("conv", ins2, flat, (Value(y4, OPS["conv"].infer(flat, *(v and v.type for v in ins2))[0]),), n.source)
            made = self._blocked_node(image, ins2, b) or self._plain_conv(image, ins2, b)
            assert made is not None and len(made) == 1
            return (b.op("reshape", self.plain(made[0], b), shape=out.shape),)
        g = a.groups
        xi = self._padded(x, a, b)
        xi = b.op("reshape", xi, shape=(xi.type.shape[0] * g, xi.type.shape[1] // g, *xi.type.shape[2:])) if g > 1 else xi
        w5, b2 = self._grouped(w, bias, g, w.type.shape[0] // g, b)
        y = b.op("conv_direct", xi, w5, b2, strides=a.strides, dilations=a.dilations)
        return (b.op("reshape", y, shape=out.shape) if g > 1 else y,)


def _moves_channels(n: Node) -> bool:
    """Whether `n` makes the second dimension of an image or a signal the last."""
    return n.op == "transpose" and n.attrs.perm[-1] == 1 and len(n.attrs.perm) in (3, 4)  # type: ignore[attr-defined]


def by_groups(v: Value | None, inner: tuple[int, ...], b: GraphBuilder) -> Value | None:
    """A blocked operand of a map (dimensions of 1 repeat) with its dimensions taken apart as those of `inner` are: a block of
    channels by the groups in it (six dimensions), or, of one image, the blocks by groups on the first dimension."""
    if v is None or v.type.rank < 5:
        return v
    n, blocks, h, w, c = v.type.shape
    if len(inner) == 6:
        return b.op("reshape", v, shape=(n, blocks, h, w, *(inner[4:] if c > 1 else (1, 1))))
    return b.op("reshape", v, shape=(*(inner[:2] if blocks > 1 else (1, 1)), h, w, c))
