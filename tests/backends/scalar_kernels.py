"""Helpers of the scalar tests: one-function kernels compiled straight with llvmlite."""
from __future__ import annotations

import ctypes

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from tilewright.backends.llvm import scalar
from tilewright.backends.target import Target
from tilewright.ir.types import BOOL, DType

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()


TARGETS = {n: Target.parse(n) for n in ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64+neon")}


def runnable() -> list[str]:
    """Names of the targets that this machine executes."""
    have = llvm.get_host_cpu_features()
    if not llvm.get_default_triple().startswith("x86_64"):
        return []
    needs = {"x86-64": (), "x86-64-v2": ("sse4.2",), "x86-64-v3": ("avx2", "fma", "f16c"), "x86-64-v4": ("avx512vl", "avx512dq", "avx512bw")}
    return [n for n, fs in needs.items() if all(have.get(f) for f in fs)]


def build(fn: str, dtype: DType, result: DType, lanes: int, name: str, arity: int, cast_to: DType | None = None) -> str:
    """LLVM IR of `kernel(ptr a, ptr b, ptr c, ptr out, i64 n)`: n vectors of `lanes` elements (0: scalars)."""
    target = TARGETS[name]
    m = ir.Module()
    p, i64 = ir.PointerType(), ir.IntType(64)
    k = ir.Function(m, ir.FunctionType(ir.VoidType(), [p, p, p, p, i64]), "kernel")
    head, body, done = (k.append_basic_block(n) for n in ("head", "body", "done"))
    b = ir.IRBuilder(head)
    b.branch(body)
    b.position_at_end(body)
    i = b.phi(i64)
    i.add_incoming(i64(0), head)
    width = max(lanes, 1)
    args = []
    for j in range(arity):
        d = BOOL if fn == "select" and j == 0 else dtype
        at = b.gep(k.args[j], [b.mul(i, i64(width * d.bytes))], source_etype=ir.IntType(8))
        raw = b.load(at, typ=scalar.memory_type(d, lanes), align=d.bytes)
        args.append(scalar.load_convert(b, raw, d, target))
    y = scalar.emit_cast(b, args[0], dtype, result, target) if cast_to else scalar.emit_call(b, fn, args, dtype, target)
    at = b.gep(k.args[3], [b.mul(i, i64(width * result.bytes))], source_etype=ir.IntType(8))
    b.store(scalar.store_convert(b, y, result, target), at, align=result.bytes)
    nxt = b.add(i, i64(1))
    i.add_incoming(nxt, b.block)
    b.cbranch(b.icmp_signed("<", nxt, k.args[4]), body, done)
    b.position_at_end(done)
    b.ret_void()
    # without "no-builtins" LLVM turns constant stores into memset calls
    return str(m).replace("\n{\n", ' "no-builtins"\n{\n', 1)


def machine(name: str) -> llvm.TargetMachine:
    t = TARGETS[name]
    return llvm.Target.from_triple(t.triple).create_target_machine(cpu=t.cpu, features=t.features, opt=3, reloc="pic", codemodel="small")


def optimised(text: str, name: str) -> llvm.ModuleRef:
    mod = llvm.parse_assembly(text)
    mod.triple = TARGETS[name].triple
    mod.verify()
    tm = machine(name)
    pb = llvm.create_pass_builder(tm, llvm.create_pipeline_tuning_options(2))
    pb.getModulePassManager().run(mod, pb)
    return mod


def assembly(text: str, name: str) -> str:
    return machine(name).emit_assembly(optimised(text, name))


def run(text: str, name: str, arrays: list[np.ndarray], out: np.ndarray, lanes: int) -> np.ndarray:
    """Executes the kernel over whole arrays, whose length is a multiple of the lanes."""
    engine = llvm.create_mcjit_compiler(optimised(text, name), machine(name))
    engine.finalize_object()
    f = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)(engine.get_function_address("kernel"))
    ptrs = [a.ctypes.data for a in arrays] + [0] * (3 - len(arrays))
    f(*ptrs, out.ctypes.data, out.size // max(lanes, 1))
    return out


def undefined_symbols(text: str, name: str) -> set[str]:
    """Names that the ELF object of `text` expects others to define."""
    import struct
    data = machine(name).emit_object(optimised(text, name))
    shoff, = struct.unpack_from("<Q", data, 40)
    shentsize, shnum = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + k * shentsize) for k in range(shnum)]
    names = set()
    for s in sections:
        if s[1] == 2:  # SHT_SYMTAB; its link is the string table
            strings = sections[s[6]][4]
            for at in range(s[4] + 24, s[4] + s[5], 24):
                st_name, _, _, shndx = struct.unpack_from("<IBBH", data, at)
                if shndx == 0:
                    end = data.index(b"\0", strings + st_name)
                    names.add(data[strings + st_name:end].decode())
    return names
