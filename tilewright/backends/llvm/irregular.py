"""Code of irregular ops (scatter, running sums, …): what numba makes of an op's `kernel`, as one function of LLVM IR.

    void symbol(inputs…, outputs…, workspace, i64 begin, i64 end, ctx) {
      code = kernel(array(in0, shape, strides), …, array(out0, …), …, array(workspace + 0, …), …);  // inlined, with all that it calls
      if (code) ctx->error = 1;   // an index was outside of its dimension
    }

numba types a kernel and lowers it; nothing of it is there at run time, and LLVM's optimiser runs here, for the plan's target, as
for all other code. Kernels make no arrays (`Op.memory` says what they need), raise nothing and call no library. Shapes and
element types are baked in. float16 and bfloat16 buffers are seen as uint16 (numba has no arithmetic for them on CPUs; kernels
only move them), tensors of rank 0 as one element of rank 1. numba is imported where it is used.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import FunctionType
from typing import TYPE_CHECKING

import numpy as np

from ...ir.graph import Node
from ...ir.op import OPS
from ...ir.text import attrs_text
from ...ir.types import DType, TensorType, contiguous_strides
from ..plan import align_up
from ..target import Target

if TYPE_CHECKING:
    from numba.core.cpu import CPUContext

_SECONDS_PER_BYTE = 0.5e-9  # of inputs and outputs: a guess
_MATH = {"sqrt": "llvm.sqrt.f64", "sqrtf": "llvm.sqrt.f32", "fabs": "llvm.fabs.f64", "fabsf": "llvm.fabs.f32"}
_FLAGS = {"no_compile": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "enable_looplift": False, "error_model": "numpy",
          "nrt": False}  # without its runtime, numba refuses kernels that take memory
_ALLOWED = ("memcpy", "memmove", "memset")  # as everywhere, see jit.py

# SSE2 has no instruction for them, and LLVM would call libm: floor(x) = n - (n > x) with n = x + 2^52 - 2^52, ceil(x) = -floor(-x)
_ROUNDING = """
declare double @llvm.fabs.f64(double)
declare double @llvm.copysign.f64(double, double)
define internal double @tw_floor(double %x) alwaysinline {
  %a = call double @llvm.fabs.f64(double %x)
  %up = fadd double %a, 4503599627370496.0
  %near = fsub double %up, 4503599627370496.0
  %n = call double @llvm.copysign.f64(double %near, double %x)
  %above = fcmp ogt double %n, %x
  %less = fsub double %n, 1.0
  %m = select i1 %above, double %less, double %n
  %r = call double @llvm.copysign.f64(double %m, double %x)
  %small = fcmp olt double %a, 4503599627370496.0
  %y = select i1 %small, double %r, double %x
  ret double %y
}
define internal double @tw_ceil(double %x) alwaysinline {
  %m = fneg double %x
  %f = call double @tw_floor(double %m)
  %y = fneg double %f
  ret double %y
}
"""


def key(node: Node) -> str:
    """What the code depends on, besides the target and the compiler's sources."""
    types = [None if v is None else v.type for v in node.inputs], [v.type for v in node.outputs]
    return f"{attrs_text(node.attrs)}|{types}|numba {version('numba')}"


def seconds(node: Node) -> float:
    """A rough time of a call."""
    return _SECONDS_PER_BYTE * sum(v.type.bytes for v in (*node.operands, *node.outputs))


def workspace_bytes(node: Node) -> int:
    return sum(align_up(t.bytes) for t in _memory(node))


def _memory(node: Node) -> tuple[TensorType, ...]:
    return OPS[node.op].memory(node.attrs, *(None if v is None else v.type for v in node.inputs))


def emit_irregular(symbol: str, node: Node, target: Target) -> str:
    """LLVM IR text. Takes 0.2 to 0.5 seconds, the first time in a process two more."""
    kernel = OPS[node.op].kernel(node.attrs, *(None if v is None else v.type for v in node.inputs))
    assert kernel is not None, f"{node.op} is not an irregular op"
    buffers, memory = [_seen(v.type, OPS[node.op].flat) for v in (*node.operands, *node.outputs)], _memory(node)
    text, name = _lowered(kernel, [*buffers, *memory])
    for libm, intrinsic in _MATH.items():
        text = re.sub(rf"@{libm}\(", f"@{intrinsic}(", text)
    if target.arch == "x86_64" and not target.has("sse4.1"):
        text = re.sub(r"^declare .*@llvm\.(fabs|copysign|floor|ceil)\.f64\(.*$", "", text, flags=re.M)
        text = re.sub(r"@llvm\.(floor|ceil)\.f64", r"@tw_\1", text) + _ROUNDING
    from .worker import inlined
    text = inlined(text + _wrapper(symbol, name, buffers, memory), symbol, target.triple)
    outside = [f for f in re.findall(r'^declare .*@"?([\w.]+)"?\(', text, flags=re.M) if not f.startswith("llvm.") and f not in _ALLOWED]
    assert not outside, f"the kernel of {node.op} calls {', '.join(outside)}"
    return text


def _wrapper(symbol: str, name: str, buffers: Sequence[TensorType], memory: Sequence[TensorType]) -> str:
    """`symbol`, which calls the function `name` of numba's signature

        i32 name(i64 *result, ptr *exception, {ptr meminfo, ptr parent, i64 elements, i64 element_bytes, ptr data, shape…, strides…}…)
    """
    arguments, at, lines = [], 0, []
    for k, t in enumerate(memory, len(buffers)):
        lines.append(f"  %p{k} = getelementptr i8, ptr %workspace, i64 {at}")
        at += align_up(t.bytes)
    for k, t in enumerate((*buffers, *memory)):
        strides = [s * t.dtype.bytes for s in contiguous_strides(t.shape)]
        arguments += ["ptr null", "ptr null", f"i64 {t.size}", f"i64 {t.dtype.bytes}", f"ptr %p{k}"]
        arguments += [f"i64 {n}" for n in (*t.shape, *strides)]
    parameters = "".join(f"ptr %p{k}, " for k in range(len(buffers)))
    return f"""
define void @"{symbol}"({parameters}ptr %workspace, i64 %begin, i64 %end, ptr %ctx) nounwind {{
  %result = alloca i64
  %exception = alloca ptr
{chr(10).join(lines)}
  store i64 0, ptr %result
  %raised = call i32 @"{name}"(ptr %result, ptr %exception, {', '.join(arguments)})
  %code = load i64, ptr %result
  %bad = icmp ne i64 %code, 0
  br i1 %bad, label %failed, label %fine
failed:
  store i64 1, ptr %ctx
  br label %fine
fine:
  ret void
}}
"""


def _seen(t: TensorType, flat: bool) -> TensorType:
    """The array that a kernel sees."""
    return TensorType(t.dtype, (t.size,) if flat else t.shape or (1,))


def _element(dtype: DType) -> np.dtype:
    """The NumPy dtype a kernel sees."""
    return np.dtype(np.uint16) if dtype.is_float and dtype.bits == 16 else dtype.numpy


def _lowered(kernel: Callable[..., object], buffers: Sequence[TensorType]) -> tuple[str, str]:
    """(IR that no optimiser has seen, the function's name in it), independent of this machine but for its data layout and triple,
    which are left out."""
    import numba
    from numba import types
    from numba.core import compiler, registry
    from numba.core.compiler_lock import global_compiler_lock
    flags = compiler.Flags()
    for name, value in _FLAGS.items():
        setattr(flags, name, value)
    with_helpers(kernel)
    arguments = tuple(types.Array(numba.from_dtype(_element(t.dtype)), t.rank, "C") for t in buffers)
    with global_compiler_lock:
        context = _context()
        library = context.codegen().create_library("tilewright")
        made = compiler.compile_extra(registry.cpu_target.typing_context, context, kernel, arguments, None, flags, {}, library=library)
        assert made.signature.return_type in (types.int64, types.none) or isinstance(made.signature.return_type, types.IntegerLiteral), \
            f"a kernel returns 0, 1 or nothing, not {made.signature.return_type}"
        library.finalize()
    text = re.sub(r"^target (triple|datalayout) = .*$", "", library.get_llvm_str(), flags=re.M)
    names: dict[str, str] = {}  # numba's have a counter in them, which differs from process to process
    text = re.sub(r"\b_ZN\w+", lambda m: names.setdefault(m[0], f"f{len(names)}"), text)
    return text, names[made.fndesc.llvm_func_name]


def with_helpers(kernel: Callable[..., object]) -> None:
    """Python functions that a kernel calls, from around it, become numba's, to be inlined."""
    import numba
    for cell in kernel.__closure__ or ():
        if isinstance(f := cell.cell_contents, FunctionType):
            with_helpers(f)
            cell.cell_contents = numba.njit(f, inline="always")


@functools.cache
def _context() -> CPUContext:
    """numba's for CPUs, with a code generator that leaves modules as they are."""
    from numba.core import codegen, registry
    from numba.core.cpu import CPUContext

    class Library(codegen.AOTCodeLibrary):
        def _optimize_functions(self, ll_module: object) -> None:
            pass

        def _optimize_final_module(self) -> None:
            pass

    class Codegen(codegen.AOTCPUCodegen):
        _library_class = Library
    base = registry.cpu_target.target_context
    assert isinstance(base, CPUContext)
    return base.subtarget(_internal_codegen=Codegen("tilewright"), aot_mode=True)
