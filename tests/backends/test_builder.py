"""The builder that writes text at once writes what llvmlite prints."""
from __future__ import annotations

from collections.abc import Callable

import pytest
from llvmlite import ir

from tilewright.backends.llvm.builder import Builder

F, I, L, P = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.PointerType()
VF, VI = ir.VectorType(F, 8), ir.VectorType(I, 8)
FLAGS = {"add": ("nsw",), "mul": ("nuw", "nsw")}
INTEGER = ("add", "sub", "mul", "udiv", "sdiv", "urem", "srem", "shl", "lshr", "ashr", "and_", "or_", "xor")
FLOAT = ("fadd", "fsub", "fmul", "fdiv")
CASTS = (("trunc", L, I), ("zext", I, L), ("sext", VI, ir.VectorType(L, 8)), ("fptrunc", ir.DoubleType(), F), ("fpext", F, ir.DoubleType()),
         ("fptoui", F, I), ("fptosi", VF, VI), ("uitofp", VI, VF), ("sitofp", I, F), ("bitcast", VF, VI), ("bitcast", F, F))


def printed(kind: type[ir.IRBuilder], emit: Callable[[ir.IRBuilder, ir.Function], object]) -> str:
    module = ir.Module(name="m")
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [F, I, L, P, VF, VI]), "f")
    ir.Function(module, ir.FunctionType(F, [F, VF]), "g.h")
    ir.Function(module, ir.FunctionType(ir.VoidType(), []), "nothing")
    b = kind(fn.append_basic_block("entry"))
    emit(b, fn)
    b.ret_void()
    return str(module)


def everything(b: ir.IRBuilder, fn: ir.Function) -> None:
    f, i, n, p, vf, vi = fn.args
    for name in INTEGER:
        getattr(b, name)(i, ir.Constant(I, -3))
        getattr(b, name)(vi, vi, name="named", flags=FLAGS.get(name, ()))
    for name in FLOAT:
        getattr(b, name)(f, ir.Constant(F, 0.1), flags=("fast",))
        getattr(b, name)(getattr(b, name)(vf, vf), vf, "named")
    for name, source, to in CASTS:
        getattr(b, name)(ir.Constant(source, ir.Undefined), to)
    for op in ("<", "<=", ">", ">=", "==", "!="):
        b.icmp_signed(op, i, i)
        b.icmp_unsigned(op, vi, vi)
        b.fcmp_ordered(op, f, f)
        b.fcmp_unordered(op, vf, vf, flags=("nnan",))
    b.fcmp_unordered("uno", f, f)
    b.select(b.icmp_signed("<", i, i), f, f)
    b.select(b.icmp_signed("<", vi, vi), vf, vf, flags=("nnan",))
    slot = b.alloca(F)
    b.store(b.load(slot), slot)
    b.store(b.load(p, typ=VF, align=4), p, align=32)
    b.gep(b.gep(p, [n], inbounds=True, source_etype=ir.IntType(8)), [ir.Constant(L, 0), i], source_etype=ir.ArrayType(F, 4))
    one = b.insert_element(ir.Constant(VF, ir.Undefined), f, ir.Constant(I, 0))
    b.extract_element(b.shuffle_vector(one, vf, ir.Constant(ir.VectorType(I, 4), [ir.Constant(I, k) for k in (0, 9, 2, 3)])), i)
    b.call(fn.module.globals["nothing"], [])
    b.call(fn.module.globals["g.h"], [f, vf], name="named")
    b.call(fn.module.globals["g.h"], [f, vf], tail=True, fastmath=("fast",))
    with b.if_then(b.icmp_signed("==", n, n), likely=False):
        b.neg(i)
        b.not_(vi)
        b.fneg(f)


def test_the_text_is_the_same() -> None:
    assert printed(Builder, everything).splitlines() == printed(ir.IRBuilder, everything).splitlines()


@pytest.mark.parametrize("emit", [
    pytest.param(lambda b, fn: b.add(fn.args[1], fn.args[2]), id="add"),
    pytest.param(lambda b, fn: b.call(fn.module.globals["g.h"], [fn.args[0]]), id="few-arguments"),
    pytest.param(lambda b, fn: b.call(fn.module.globals["g.h"], [fn.args[4], fn.args[0]]), id="other-types"),
])
def test_types_are_checked(emit: Callable[[ir.IRBuilder, ir.Function], object]) -> None:
    with pytest.raises(TypeError):
        printed(Builder, emit)
