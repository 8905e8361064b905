"""Looking at a model on its way to code: what `tilewright inspect` prints."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..backends.llvm.emit import emit_kernel
from ..backends.llvm.jit import assembly, optimised_ir
from ..backends.target import Target
from ..errors import InputError
from ..ir.graph import Graph
from ..ir.types import TensorSpec
from . import frontends
from .build import Lowered, lower_graph, make_options
from .frontends.source import Segment, Source


def inspect(model: object, stage: str, target: str | Target = "native", shapes: Mapping[str, Sequence[int]] | None = None,
            group: str | None = None, strict: bool = False) -> str:
    """The model on its way to code, as text: stage graph, fused, loops, llvm or asm; `group` picks one by number or name."""
    options = make_options(target, None, "f32", None, True, strict)
    graph = model if isinstance(model, Graph) else _static_graph(frontends.load(model), shapes)
    low = lower_graph(graph, options)
    if stage == "graph":
        return str(low.prepared.main)
    if stage == "fused":
        return _fused_text(low, group)
    picked = [(k, s) for k, s in zip(low.kernels, low.scheduled, strict=True) if _matches(low, k.group, k.label, group)]
    if not picked:
        raise InputError(f"no group is called {group!r}; there are {len(low.partition.groups)} groups, see --stage fused")
    parts, seen = [], set()
    for i, (k, s) in enumerate(picked):
        head = f"# kernel {i}, group {k.group}: {k.label}\n"
        if s is None:
            parts.append(f"{head}host function of {k.label}")
        elif (text := f"{s}") not in seen:
            seen.add(text)
            symbol = f"k{i}"
            show = optimised_ir if stage == "llvm" else assembly
            parts.append(head + (f"{s.program}\n{s}" if stage == "loops" else show(emit_kernel(s, options.target, symbol), options.target)))
    return "\n\n".join(parts)


def lowered(model: object, target: str | Target = "native", shapes: Mapping[str, Sequence[int]] | None = None) -> Lowered:
    """The model's kernels with their schedules, without machine code: for benchmarks and tests of the compiler."""
    graph = model if isinstance(model, Graph) else _static_graph(frontends.load(model), shapes)
    return lower_graph(graph, make_options(target, None, "f32", None, True))


def _static_graph(source: Source, shapes: Mapping[str, Sequence[int]] | None) -> Graph:
    types = {k: tuple(v) for k, v in (shapes or {}).items()}
    missing = [f"{s.name}[{','.join(map(str, s.shape))}]" for s in source.inputs
               if isinstance(s, TensorSpec) and s.name not in types and not all(isinstance(d, int) for d in s.shape)]
    if missing:
        raise InputError(f"the shape of {', '.join(missing)} is symbolic; give concrete ones with --shape name=dims")
    segment: Segment = source.import_graph(types)
    return segment.graph


def _matches(low: Lowered, index: int, label: str, group: str | None) -> bool:
    return group is None or group == str(index) or group in label


def _fused_text(low: Lowered, group: str | None) -> str:
    lines = []
    for i, (g, r) in enumerate(zip(low.partition.groups, low.views.roles, strict=True)):
        if not _matches(low, i, g.label, group):
            continue
        role = f"   [{r.kind}]" if r.kind != "kernel" else ""
        lines.append(f"group {i}  {g.kind:<11} {g.label} -> {', '.join(map(repr, g.outputs))}{role}")
        lines += [f"    {w}" for w in (*g.why, *((r.why,) if r.why else ()))]
        lines += [f"    {line}" for k in low.kernels if k.group == i and k.program is not None for line in str(k.program).splitlines()]
    if not lines:
        raise InputError(f"no group is called {group!r}; there are {len(low.partition.groups)} groups")
    return "\n".join(lines)
