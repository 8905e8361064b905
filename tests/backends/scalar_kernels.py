"""Helpers of the scalar tests: one-function kernels compiled straight with llvmlite."""
from __future__ import annotations

import ctypes
import re
import struct
from dataclasses import dataclass

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
    needs = {"x86-64": (), "x86-64-v2": ("sse4.2",), "x86-64-v3": ("avx2", "fma", "f16c"),
             "x86-64-v4": ("avx512vl", "avx512dq", "avx512bw")}
    return [n for n, fs in needs.items() if all(have.get(f) for f in fs)]


@dataclass(frozen=True)
class Kernel:
    """`name(ptr a, ptr b, ptr c, ptr out, i64 n)`: one function, or a cast (`fn` "cast"), of n vectors (lanes 0: scalars)."""

    fn: str
    dtype: DType
    result: DType
    lanes: int
    arity: int = 1

    @property
    def name(self) -> str:
        return f"{self.fn}_{self.dtype}_{self.result}_{self.lanes}"

    def operand(self, j: int) -> DType:
        return BOOL if self.fn == "select" and j == 0 else self.dtype


def module(kernels: list[Kernel], target: Target) -> str:
    """LLVM IR of all `kernels`. Without "no-builtins" LLVM would turn constant stores into memset calls."""
    m = ir.Module()
    for k in kernels:
        _emit(m, k, target)
    return re.sub(r"^(define [^\n{]*?)\s*$", r'\1 "no-builtins"', str(m), flags=re.M)


def _emit(m: ir.Module, k: Kernel, target: Target) -> None:
    p, i64 = ir.PointerType(), ir.IntType(64)
    f = ir.Function(m, ir.FunctionType(ir.VoidType(), [p, p, p, p, i64]), k.name)
    head, body, done = (f.append_basic_block(n) for n in ("head", "body", "done"))
    b = ir.IRBuilder(head)
    b.branch(body)
    b.position_at_end(body)
    i = b.phi(i64)
    i.add_incoming(i64(0), head)
    width = max(k.lanes, 1)

    def place(base: ir.Value, d: DType) -> ir.Value:
        return b.gep(base, [b.mul(i, i64(width * d.bytes))], source_etype=ir.IntType(8))
    args = []
    for j in range(k.arity):
        d = k.operand(j)
        raw = b.load(place(f.args[j], d), typ=scalar.memory_type(d, k.lanes), align=d.bytes)
        args.append(scalar.load_convert(b, raw, d, target))
    y = scalar.emit_cast(b, args[0], k.dtype, k.result, target) if k.fn == "cast" else scalar.emit_call(b, k.fn, args, k.dtype, target)
    b.store(scalar.store_convert(b, y, k.result, target), place(f.args[3], k.result), align=k.result.bytes)
    nxt = b.add(i, i64(1))
    i.add_incoming(nxt, b.block)
    b.cbranch(b.icmp_signed("<", nxt, f.args[4]), body, done)
    b.position_at_end(done)
    b.ret_void()


def machine(name: str) -> llvm.TargetMachine:
    t = TARGETS[name]
    return llvm.Target.from_triple(t.triple).create_target_machine(cpu=t.cpu, features=t.features, opt=3, reloc="pic", codemodel="small")


def optimised(text: str, name: str, level: int = 2) -> llvm.ModuleRef:
    mod = llvm.parse_assembly(text)
    mod.triple = TARGETS[name].triple
    mod.verify()
    tm = machine(name)
    pb = llvm.create_pass_builder(tm, llvm.create_pipeline_tuning_options(level))
    pb.getModulePassManager().run(mod, pb)
    return mod


def assembly(text: str, name: str) -> str:
    return machine(name).emit_assembly(optimised(text, name))


class Compiled:
    """Executable kernels; `run` takes arrays whose length is a multiple of the lanes."""

    def __init__(self, kernels: list[Kernel], name: str) -> None:
        self.engine = llvm.create_mcjit_compiler(optimised(module(kernels, TARGETS[name]), name), machine(name))
        self.engine.finalize_object()

    def run(self, k: Kernel, *arrays: np.ndarray) -> np.ndarray:
        f = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)(self.engine.get_function_address(k.name))
        out = np.empty(arrays[0].size, k.result.numpy)
        f(*[a.ctypes.data for a in arrays], *[0] * (3 - len(arrays)), out.ctypes.data, out.size // max(k.lanes, 1))
        return out


def object_code(kernels: list[Kernel], name: str) -> bytes:
    return machine(name).emit_object(optimised(module(kernels, TARGETS[name]), name, 1))


def undefined_symbols(text: str, name: str) -> set[str]:
    """Names that the ELF object of `text` expects others to define."""
    data = machine(name).emit_object(optimised(text, name, 1))
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
