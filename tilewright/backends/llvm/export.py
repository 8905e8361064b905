"""A compiled model as files for other programs: object, archive, shared library with a C header; IR and assembly to read.

    size_t m_workspace_bytes(void);
    int m_run(const float *x, float *y, void *workspace);
    int m_run_parallel(const float *x, float *y, void *workspace, int threads, m_parallel_for parallel_for, void *context);

For models of any number of rows, `int64_t rows` comes before the workspace.

The last one is there where the model was compiled for several threads; these are the caller's (`parallel_c.py`). The
weights are inside, everything but these functions is local, and no C toolchain is needed to write them. What
remains undefined is memcpy, memmove and memset, which LLVM may make of loops and every C library has.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import InputError, UnsupportedError
from ...ir.types import DType, TensorType
from ...version import __version__
from ..files import write_whole
from ..instance import Instance
from ..plan import ARENA_ALIGN, Plan
from .elf import Bytes, ElfError, Image, combine, relocatable
from .entry import CTX_FIELDS, CTX_ROWS, ENTRY, emit_entry
from .jit import EXTERNAL, compile_ir
from .linker import shared_library
from .parallel_c import parallel_functions, parallel_header, pool_of_caller

SUFFIXES = (".o", ".a", ".so", ".ll", ".s")
_C_KEYWORDS: frozenset[str] = frozenset("""auto break case char const continue default do double else enum extern float for goto if
inline int long register rows restrict return short signed sizeof static struct switch typedef union unsigned void volatile while workspace
asm bool class delete export namespace new operator private protected public template this true false typename virtual""".split())  # noqa: SIM905


def export(instance: Instance, name: str, path: Path, header: bool) -> None:
    """Writes the file that `path`'s suffix says, and with `header` `path`.h for the linkable ones. Raises InputError for
    other suffixes, UnsupportedError for code larger than a library can be."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"cannot export to {path.name!r}: the suffix must be one of {', '.join(SUFFIXES)}")
    prefix = identifier(path.stem, set())
    if suffix in (".ll", ".s"):
        text = _text(instance, prefix, suffix)
        write_whole(path, lambda f: f.write(text.encode()))
        return
    image = _image(instance, prefix)
    exported = [f"{prefix}_run", f"{prefix}_workspace_bytes", *([f"{prefix}_run_parallel"] if instance.plan.phases else [])]
    try:
        chunks = shared_library(image, exported, path.name, EXTERNAL) if suffix == ".so" else relocatable(image, exported)
    except ElfError as e:
        raise UnsupportedError(f"{name} cannot be exported: {e}") from None
    if suffix == ".a":
        chunks = archive(f"{prefix}.o", chunks, exported)
    write_whole(path, lambda f: f.writelines(chunks))
    if header:
        h = header_text(instance.plan, name, prefix, str(instance.target))
        write_whole(path.with_suffix(".h"), lambda f: f.write(h.encode()))


def _image(instance: Instance, prefix: str) -> Image:
    """Kernels, C functions and weights."""
    arrays = instance.weight_arrays
    offsets, at = [], 0
    for a in arrays:  # as Image.add_weights will place them
        offsets.append(at)
        at += a.nbytes + -a.nbytes % ARENA_ALIGN
    code = compile_ir(c_functions(instance.plan, prefix, offsets), instance.target)
    image = combine([b"".join(relocatable(instance.image, instance.plan.symbols)), code])
    if arrays:
        placed = image.add_weights(f"{prefix}_weights", [a.reshape(-1).view(np.uint8).data for a in arrays])
        assert list(placed) == offsets, "offsets of the weights"
    return image


def c_functions(plan: Plan, prefix: str, weight_offsets: Sequence[int]) -> str:
    """IR of the C functions around the entry point, which LLVM inlines: the pointer tables vanish.

        int m_run(p0, …, workspace) {
          if (workspace == NULL && m_workspace_bytes() != 0) return 2;
          return tw_run({inputs}, {outputs}, {m_weights + offset, …}, align64(workspace), {0, NULL, NULL, 0});
        }
    """
    entry = emit_entry(plan, fill=True).replace(f'define i32 @"{ENTRY}"', f'define internal i32 @"{ENTRY}"')
    lines = [entry, f"@{prefix}_weights = external hidden constant i8, align 64" if plan.weights else "",
             f"define i64 @{prefix}_workspace_bytes() nounwind {{", f"  ret i64 {workspace_bytes(plan)}", "}", "",
             *_run_function(plan, prefix, f"{prefix}_run", weight_offsets, "", [])]
    if plan.phases:
        lines.append(parallel_functions(plan, prefix))
        lines += _run_function(plan, prefix, f"{prefix}_run_parallel", weight_offsets, *pool_of_caller(prefix))
    return "\n".join(lines)


def _run_function(plan: Plan, prefix: str, name: str, weight_offsets: Sequence[int], parameters: str, pool: Sequence[str]) -> list[str]:
    """`parameters`: more of them. `pool`: code that stores a pool into %ctx."""
    n, m, k = len(plan.inputs), len(plan.outputs), len(plan.weights)
    rows = "i64 %rows, " if plan.by_rows else ""
    lines = [f"define i32 @{name}({''.join(f'ptr %p{j}, ' for j in range(n + m))}{rows}ptr %workspace{parameters}) nounwind {{",
             f"  %absent = icmp eq ptr %workspace, null\n  %refuse = and i1 %absent, {'true' if workspace_bytes(plan) else 'false'}",
             "  br i1 %refuse, label %bad, label %good\nbad:\n  ret i32 2\ngood:"]
    for table, count in (("inputs", n), ("outputs", m), ("weights", k), ("ctx", CTX_FIELDS)):
        lines.append(f"  %{table} = alloca [{max(1, count)} x ptr], align 8")
    stores = [("inputs", j, f"%p{j}") for j in range(n)] + [("outputs", j, f"%p{n + j}") for j in range(m)]
    for j, offset in enumerate(weight_offsets):
        lines.append(f"  %w{j} = getelementptr i8, ptr @{prefix}_weights, i64 {offset}")
        stores.append(("weights", j, f"%w{j}"))
    stores += [("ctx", j, "null") for j in range(CTX_FIELDS)]
    for table, j, value in stores:
        lines += [f"  %{table}{j} = getelementptr ptr, ptr %{table}, i64 {j}", f"  store ptr {value}, ptr %{table}{j}"]
    if plan.by_rows:
        lines.append(f"  store i64 %rows, ptr %ctx{CTX_ROWS}")
    return [*lines, *pool, "  %int = ptrtoint ptr %workspace to i64", f"  %up = add i64 %int, {ARENA_ALIGN - 1}",
            f"  %cut = and i64 %up, {-ARENA_ALIGN}", "  %arena = inttoptr i64 %cut to ptr",
            f'  %r = call i32 @"{ENTRY}"(ptr %inputs, ptr %outputs, ptr %weights, ptr %arena, ptr %ctx)', "  ret i32 %r", "}", ""]


def workspace_bytes(plan: Plan) -> int:
    """What a caller must provide at any alignment."""
    return plan.arena_bytes + ARENA_ALIGN - 1 if plan.arena_bytes else 0


def header_text(plan: Plan, name: str, prefix: str, target: str) -> str:
    """The C header."""
    taken: set[str] = set(_C_KEYWORDS)
    rows, parameters = [], []
    for group, const in ((plan.inputs, "const "), (plan.outputs, "")):
        for n, t in group:
            c = identifier(n, taken)
            parameters.append(f"{const}{c_type(t.dtype)} *{c}")
            shape = _c_shape(t, plan.by_rows is not None)
            rows.append(f" *   {c:<12} {'input ' if const else 'output'} {shape}{f' ({n})' if c != n else ''}".replace("*/", "* /"))
    if plan.by_rows:
        parameters.append("int64_t rows")
        rows.append(" *   rows         how many, 0 or more; each is computed alone")
    guard = f"{prefix.upper()}_H"
    title = name.replace("*/", "* /")
    return f"""/* {title}, compiled by Tilewright {__version__} for {target}.
 *
 * int {prefix}_run(…): all arrays are contiguous and row-major; no alignment beyond their elements' is needed.
{chr(10).join(rows)}
 *   workspace    {prefix}_workspace_bytes() = {workspace_bytes(plan)} bytes at any alignment (may be NULL where that is 0).
 * Returns 0; 1 where an index computed from the inputs is out of range (the outputs are then undefined); 2 where the
 * workspace is NULL. Outputs must not overlap with inputs. Calls with workspaces of their own may run at once. */
#ifndef {guard}
#define {guard}
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {{
#endif

size_t {prefix}_workspace_bytes(void);
int {prefix}_run({', '.join([*parameters, 'void *workspace'])});
{parallel_header(prefix, parameters) if plan.phases else ''}
#ifdef __cplusplus
}}
#endif
#endif
"""


def c_type(d: DType) -> str:
    """The C element type. f16 and bf16 are passed as their bits; a bool is one byte, 0 or 1."""
    if d.is_float:
        return {16: "uint16_t", 32: "float", 64: "double"}[d.bits]
    return "uint8_t" if d.kind == "b" else f"{'u' if d.kind == 'u' else ''}int{d.bits}_t"


def _c_shape(t: TensorType, by_rows: bool) -> str:
    what = f"{t.dtype} as bits, " if t.dtype.is_float and t.dtype.bits == 16 else ""
    return what + c_type(t.dtype) + "".join(f"[{n}]" for n in (("rows", *t.shape[1:]) if by_rows else t.shape))


def identifier(name: str, taken: set[str]) -> str:
    """A C identifier like `name`, not among `taken`, to which it is added."""
    base = re.sub(r"\W", "_", name, flags=re.ASCII) or "x"
    base = f"m{base}" if base[0].isdigit() or base[0] == "_" else base
    c, k = base, 1
    while c in taken:
        c, k = f"{base}_{k}", k + 1
    taken.add(c)
    return c


def _text(instance: Instance, prefix: str, suffix: str) -> str:
    """All kernels and the C functions in one module. The weights stay outside: they are declared, not defined."""
    if instance.ir is None:
        raise InputError(f"the IR of a loaded model is not kept: compile the model to export {suffix}")
    from .worker import link_modules, optimised, target_machine
    t = instance.target
    offsets, at = [], 0
    for a in instance.weight_arrays:
        offsets.append(at)
        at += a.nbytes + -a.nbytes % ARENA_ALIGN
    text = link_modules([*instance.ir(), c_functions(instance.plan, prefix, offsets)], t.triple)
    if suffix == ".ll":
        return text
    tm = target_machine(t.triple, t.cpu, t.features)
    return tm.emit_assembly(optimised(text, tm, t.triple))


def archive(member: str, chunks: Sequence[Bytes], symbols: Sequence[str]) -> list[Bytes]:
    """A static library (System V `ar`) of one object, with the index of symbols that linkers ask for."""
    size = sum(memoryview(c).nbytes for c in chunks)
    names = b"".join(s.encode() + b"\0" for s in symbols)
    index_size = 4 + 4 * len(symbols) + len(names)
    index_size += index_size % 2
    at = 8 + 60 + index_size
    index = len(symbols).to_bytes(4, "big") + at.to_bytes(4, "big") * len(symbols) + names

    def head(name: str, n: int) -> bytes:
        return f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{n:<10}`\n".encode()
    return [b"!<arch>\n", head("/", index_size), index.ljust(index_size, b"\0"), head(f"{member[:15]}/", size), *chunks, b"\n" * (size % 2)]
