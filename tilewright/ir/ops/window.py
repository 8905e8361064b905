"""The geometry of sliding windows, shared by convolutions and pools."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ShapeError
from ..expr import Expr, all_of
from ..graph import Attrs
from ..op import OnnxNode


@dataclass(frozen=True, slots=True)
class WindowAttrs(Attrs):
    """One entry a spatial dimension; tap t of output o reads input o * stride + t * dilation - pad.

    `pads` holds all begins, then all ends. Ends may reach beyond what windows read, and may fall short of it where a
    pool rounds its output up; elements outside the input never count.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()  # extents of the output

    @property
    def begins(self) -> tuple[int, ...]:
        return self.pads[:len(self.kernel)]

    @property
    def ends(self) -> tuple[int, ...]:
        return self.pads[len(self.kernel):]


def attr_ints(n: OnnxNode, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An integer-list attribute. Raises ShapeError where its length is not that of `default`."""
    v = n.attrs.get(name)
    out = tuple(default) if v is None else tuple(int(x) for x in v)  # type: ignore[union-attr]
    if len(out) != len(default):
        raise ShapeError(f"{n.op_type} {n.name!r}: {name} {list(out)} needs {len(default)} entries")
    return out


def extent(k: int, dilation: int) -> int:
    """Input elements from a window's first tap through its last."""
    return (k - 1) * dilation + 1


def window_of(n: OnnxNode, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> WindowAttrs:
    """The window of a Conv or pool node: explicit pads or auto_pad, output extents rounded as ceil_mode says."""
    r = len(spatial)
    if r == 0 or len(kernel) != r:
        raise ShapeError(f"{n.op_type} {n.name!r}: a kernel of {len(kernel)} dimensions over {r} spatial ones")
    strides, dilations = attr_ints(n, "strides", (1,) * r), attr_ints(n, "dilations", (1,) * r)
    pads = list(attr_ints(n, "pads", (0,) * (2 * r)))
    auto = str(n.attrs.get("auto_pad", "NOTSET"))
    if min((*strides, *dilations, *kernel)) < 1:
        raise ShapeError(f"{n.op_type} {n.name!r}: kernel, strides and dilations must be positive")
    sizes = []
    for k in range(r):
        span = extent(kernel[k], dilations[k])
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            out = -(-spatial[k] // strides[k])
            total = max((out - 1) * strides[k] + span - spatial[k], 0)
            pads[k] = total // 2 if auto == "SAME_UPPER" else total - total // 2
            pads[k + r] = total - pads[k]
        else:
            if auto == "VALID":
                pads[k] = pads[k + r] = 0
            room = spatial[k] + pads[k] + pads[k + r] - span
            out = int(room / strides[k]) + 1  # truncated toward 0, as ONNX has it: a window may hang over the end a little
            if n.attrs.get("ceil_mode", 0) and auto != "VALID":
                out = -(-room // strides[k]) + 1
                if (out - 1) * strides[k] >= spatial[k] + pads[k]:
                    out -= 1  # a window that would start in the padding at the end
            if out < 0 or (out == 0 and room < -strides[k]):
                raise ShapeError(f"{n.op_type} {n.name!r}: a window of {span} does not fit into {spatial[k]} with pads {pads}")
        sizes.append(max(out, 0))
    return WindowAttrs(kernel, strides, tuple(pads), dilations, tuple(sizes))


def taps(a: WindowAttrs, spatial: tuple[int, ...], o: Sequence[Expr], t: Sequence[Expr]) -> tuple[list[Expr], Expr | None]:
    """Input positions of tap `t` of output `o`, and the condition that they are inside (None: they always are)."""
    at: list[Expr] = []
    inside: list[Expr] = []
    for k, n in enumerate(spatial):
        begin = a.begins[k]
        p = o[k] * a.strides[k] + t[k] * a.dilations[k] - begin
        if begin > 0:
            inside.append(p >= 0)
        if (a.sizes[k] - 1) * a.strides[k] + extent(a.kernel[k], a.dilations[k]) - begin > n:
            inside.append(p < n)
        at.append(p)
    return at, all_of(inside)
