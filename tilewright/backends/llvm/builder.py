"""An `ir.IRBuilder` that writes each instruction's text as it is made.

llvmlite keeps operands, flags, attributes and metadata of every instruction as objects and formats them when the module is printed,
which takes several times as long as to write the line at once. An unrolled kernel has thousands of instructions, a search makes
hundreds of kernels. The usual instructions are made here; those that change later (phi), ends of blocks and the rare ones remain
llvmlite's. The text is the same, to the character.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_I1 = ir.IntType(1)
_VOID = ir.VoidType()


class Line(ir.Value):
    """One instruction: its text, and its result's type and name."""

    __slots__ = ("name", "text", "type")

    def __init__(self, text: str, kind: ir.Type, name: str) -> None:
        self.text, self.type, self.name = text, kind, name

    def get_reference(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.text


def _operand(v: ir.Value) -> str:
    return f"{v.type!s} {v.get_reference()}"


def _binary(opcode: str) -> Callable[..., Line]:
    def make(self: Builder, lhs: ir.Value, rhs: ir.Value, name: str = "", flags: Sequence[str] = ()) -> Line:
        kind = lhs.type
        if kind is not rhs.type and kind != rhs.type:
            raise TypeError(f"operands of {opcode} differ in type: {kind}, {rhs.type}")
        head = f"{opcode} {' '.join(flags)}" if flags else opcode
        return self.line(f"{head} {kind!s} {lhs.get_reference()}, {rhs.get_reference()}", kind, name)
    return make


def _conversion(opcode: str) -> Callable[..., ir.Value]:
    def make(self: Builder, value: ir.Value, kind: ir.Type, name: str = "") -> ir.Value:
        if value.type == kind:
            return value
        return self.line(f"{opcode} {_operand(value)} to {kind!s}", kind, name)
    return make


class Builder(ir.IRBuilder):
    """As `ir.IRBuilder`. Types of operands are checked where LLVM's parser would not notice."""

    def line(self, text: str, kind: ir.Type, name: str = "") -> Line:
        """Appends an instruction with a result."""
        ref = f'%"{self._block.scope.register(name, deduplicate=True)}"'
        made = Line(f"{ref} = {text}", kind, ref)
        self._insert(made)
        return made

    def _plain(self, text: str) -> Line:
        """Appends one without a result, which takes a name all the same, as llvmlite's do."""
        self._block.scope.register("", deduplicate=True)
        made = Line(text, _VOID, "")
        self._insert(made)
        return made

    add, sub, mul = _binary("add"), _binary("sub"), _binary("mul")
    fadd, fsub, fmul, fdiv = _binary("fadd"), _binary("fsub"), _binary("fmul"), _binary("fdiv")
    udiv, sdiv, urem, srem = _binary("udiv"), _binary("sdiv"), _binary("urem"), _binary("srem")
    shl, lshr, ashr = _binary("shl"), _binary("lshr"), _binary("ashr")
    and_, or_, xor = _binary("and"), _binary("or"), _binary("xor")
    trunc, zext, sext = _conversion("trunc"), _conversion("zext"), _conversion("sext")
    fptrunc, fpext = _conversion("fptrunc"), _conversion("fpext")
    fptoui, fptosi, uitofp, sitofp = _conversion("fptoui"), _conversion("fptosi"), _conversion("uitofp"), _conversion("sitofp")
    bitcast = _conversion("bitcast")

    def _compare(self, opcode: str, lhs: ir.Value, rhs: ir.Value, name: str) -> Line:
        kind = ir.VectorType(_I1, lhs.type.count) if isinstance(lhs.type, ir.VectorType) else _I1
        return self.line(f"{opcode} {_operand(lhs)}, {rhs.get_reference()}", kind, name)

    def icmp_signed(self, cmpop: str, lhs: ir.Value, rhs: ir.Value, name: str = "") -> Line:
        return self._compare(f"icmp {'' if cmpop in ('==', '!=') else 's'}{_COMPARE[cmpop]}", lhs, rhs, name)

    def icmp_unsigned(self, cmpop: str, lhs: ir.Value, rhs: ir.Value, name: str = "") -> Line:
        return self._compare(f"icmp {'' if cmpop in ('==', '!=') else 'u'}{_COMPARE[cmpop]}", lhs, rhs, name)

    def fcmp_ordered(self, cmpop: str, lhs: ir.Value, rhs: ir.Value, name: str = "", flags: Sequence[str] = ()) -> Line:
        op = f"o{_COMPARE[cmpop]}" if cmpop in _COMPARE else cmpop
        return self._compare(" ".join(["fcmp", *flags, op]), lhs, rhs, name)

    def fcmp_unordered(self, cmpop: str, lhs: ir.Value, rhs: ir.Value, name: str = "", flags: Sequence[str] = ()) -> Line:
        op = f"u{_COMPARE[cmpop]}" if cmpop in _COMPARE else cmpop
        return self._compare(" ".join(["fcmp", *flags, op]), lhs, rhs, name)

    def select(self, cond: ir.Value, lhs: ir.Value, rhs: ir.Value, name: str = "", flags: Sequence[str] = ()) -> Line:
        return self.line(f"select {' '.join(flags)} {_operand(cond)}, {_operand(lhs)}, {_operand(rhs)}", lhs.type, name)

    def load(self, ptr: ir.Value, name: str = "", align: int | None = None, typ: ir.Type | None = None) -> ir.Value:
        if typ is None:
            return super().load(ptr, name, align)
        return self.line(f"load {typ!s}, {_operand(ptr)}{'' if align is None else f', align {align}'}", typ, name)

    def store(self, value: ir.Value, ptr: ir.Value, align: int | None = None) -> Line:
        return self._plain(f"store {_operand(value)}, {_operand(ptr)}{'' if align is None else f', align {align}'}")

    def gep(self, ptr: ir.Value, indices: Sequence[ir.Value], inbounds: bool = False, name: str = "",
            source_etype: ir.Type | None = None) -> ir.Value:
        if source_etype is None:
            return super().gep(ptr, indices, inbounds, name)
        head = "getelementptr inbounds" if inbounds else "getelementptr"
        return self.line(f"{head} {source_etype!s}, {_operand(ptr)}, {', '.join([_operand(i) for i in indices])}", ptr.type, name)

    def extract_element(self, vector: ir.Value, idx: ir.Value, name: str = "") -> Line:
        return self.line(f"extractelement {_operand(vector)}, {_operand(idx)}", vector.type.element, name)

    def insert_element(self, vector: ir.Value, value: ir.Value, idx: ir.Value, name: str = "") -> Line:
        return self.line(f"insertelement {_operand(vector)}, {_operand(value)}, {_operand(idx)}", vector.type, name)

    def shuffle_vector(self, vector1: ir.Value, vector2: ir.Value, mask: ir.Constant, name: str = "") -> Line:
        kind = ir.VectorType(vector1.type.element, mask.type.count)
        return self.line(f"shufflevector {_operand(vector1)}, {_operand(vector2)}, {_operand(mask)}", kind, name)

    def call(self, fn: ir.Function, args: Sequence[ir.Value], name: str = "", **how: object) -> ir.Value:
        """Of a function; `how`: what is not plain about it, for llvmlite."""
        kind = fn.function_type
        if how or not isinstance(fn, ir.Function) or fn.calling_convention or kind.var_arg:
            return super().call(fn, args, name, **how)
        wanted = kind.args
        if len(wanted) != len(args) or any(a.type is not t and a.type != t for a, t in zip(args, wanted, strict=True)):
            raise TypeError(f"arguments of {fn.name} are {', '.join(str(a.type) for a in args)}, expected {kind}")
        text = f"call {kind.return_type!s} {fn.get_reference()}({', '.join([_operand(a) for a in args])})"
        return self._plain(text) if kind.return_type == _VOID else self.line(text, kind.return_type, name)
