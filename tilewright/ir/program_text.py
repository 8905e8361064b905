"""Reads what `program_text(p, canonical=True)` writes: `program_text(parse_program(t), canonical=True) == t`.

    program @p(b0: f32[8,64], b1: f32[64,10]) -> (b2: f32[8,10]) {
      b2[i0<8,i1<10] = sum(r0<64: (b0[i0,r0] * b1[r0,i1]))
    }

A tuning log carries programs in this form, so that a record can be run anywhere without the model that it came from.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from ..errors import ModelError
from .expr import COMPARISONS, PREDICATES, Axis, Buffer, Call, Cast, Checked, Const, Expr, Load, Reduce, Rescue, Table, Var
from .functions import FUNCTIONS
from .intern import Interner
from .program import INFIX, Compute, Program
from .types import BOOL, DTYPES, I64

_TOKEN = re.compile(r"\s*(?:(?P<number>-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf|nan)\b)|(?P<word>[A-Za-z_][\w.]*)"
                    r"|(?P<punct>->|//|==|!=|<=|>=|[-+*/%<>&|^()\[\]{}:,;=@]))")
_FUNCTION = {symbol: fn for fn, symbol in INFIX.items()}
_KINDS = frozenset({"sum", "prod", "max", "min", "any", "all"})
T = TypeVar("T")


def parse_program(text: str) -> Program:
    """The program of `text`. Raises ModelError where it is not one, with the place."""
    p = _Parser(text)
    try:
        return p.program()
    except (KeyError, ValueError, AssertionError) as e:  # an unknown name, a number that is none, a program that contradicts itself
        p.fail(str(e) or type(e).__name__)


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            m = _TOKEN.match(text, at)
            if m is None:
                raise ModelError(f"program text: unexpected {text[at:at + 20]!r}")
            self.tokens.append((str(m.lastgroup), m[m.lastgroup or 0]))
            at = m.end()
        self.at = 0
        self.intern = Interner()
        self.buffers: dict[str, Buffer] = {}
        self.axes: dict[str, Axis] = {}
        self.lets: dict[str, Expr] = {}

    def fail(self, message: str) -> NoReturn:
        near = " ".join(t for _, t in self.tokens[max(0, self.at - 4):self.at + 4])
        raise ModelError(f"program text, near {near!r}: {message}")

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else ""

    def take(self, what: str = "") -> str:
        t = self.peek()
        if not t or what and t != what:
            self.fail(f"expected {what or 'more'}, found {t or 'the end'}")
        self.at += 1
        return t

    def skip(self, what: str) -> bool:
        if self.peek() != what:
            return False
        self.at += 1
        return True

    def listed(self, item: Callable[[], T], end: str) -> list[T]:
        """Items and commas up to `end`, which is taken as well."""
        out: list[T] = []
        while not self.skip(end):
            out.append(item())
            if self.peek() != end:
                self.take(",")
        return out

    # -- declarations ------------------------------------------------------------------------------------------------
    def program(self) -> Program:
        self.take("program")
        self.take("@")
        name = self.take()
        self.take("(")
        inputs = self.listed(self.buffer, ")")
        self.buffers.update({b.name: b for b in inputs})
        self.take("->")
        self.take("(")
        outputs = self.listed(self.buffer, ")")
        self.buffers.update({b.name: b for b in outputs})
        self.take("{")
        computes = []
        while not self.skip("}"):
            computes.append(self.compute())
        return Program(name, tuple(inputs), tuple(outputs), tuple(computes))

    def buffer(self) -> Buffer:
        name = self.take()
        self.take(":")
        dtype = DTYPES[self.take()]
        self.take("[")
        shape = tuple(self.listed(lambda: int(self.take()), "]"))
        strides: tuple[int, ...] = ()
        if self.skip("@"):
            strides = tuple(int(self.take()) for _ in shape[:1])
            strides += tuple(int((self.take(","), self.take())[1]) for _ in shape[1:])
        return Buffer(name, dtype, shape, strides)

    def compute(self) -> Compute:
        if self.skip("local"):
            b = self.buffer()
            self.buffers[b.name] = b
            self.take(";")
        name = self.take()
        self.take("[")
        axes = tuple(self.listed(self.axis, "]"))
        self.take("=")
        self.lets = {}
        while self.peek() == "let" and self.peek(2) == "=":
            self.take("let")
            t = self.take()
            self.take("=")
            self.lets[t] = self.expr()
            self.take("in")
        return Compute(self.buffers[name], axes, self.expr())

    def axis(self) -> Axis:
        name = self.axis_name()
        self.take("<")
        a = Axis(name, int(self.take()))
        self.axes[name] = a
        return a

    def axis_name(self) -> str:
        """Fused axes are called "i0*i1"."""
        name = self.take()
        while self.peek() == "*":
            name += self.take() + self.take()
        return name

    # -- expressions -------------------------------------------------------------------------------------------------
    def expr(self) -> Expr:
        return self.intern.node(self.node())

    def node(self) -> Expr:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        follows = self.peek(1)
        if text == "(":
            return self.bracket()
        if kind == "number" or text in ("True", "False"):
            return self.constant()
        if kind != "word":
            self.fail(f"{text or 'the end'} is no expression")
        if follows == "[" and text in self.buffers:
            return self.load()
        if follows == "{":
            return self.table()
        if follows == "(":
            return self.call()
        self.take()
        return self.lets[text] if text in self.lets else Var(self.axes[text])

    def constant(self) -> Const:
        text = self.take()
        if text in ("True", "False"):
            return Const(text == "True", BOOL)
        if not self.skip(":"):
            return Const(int(text), I64)
        dtype = DTYPES[self.take()]
        return Const(float(text) if dtype.is_float else int(text), dtype)

    def load(self) -> Load:
        buffer = self.buffers[self.take()]
        self.take("[")
        return Load(buffer, tuple(self.listed(self.expr, "]")))

    def bracket(self) -> Expr:
        """(a + b), or (b0[i] if condition else other)."""
        self.take("(")
        first = self.expr()
        if isinstance(first, Load) and self.skip("if"):
            where = self.expr()
            self.take("else")
            out: Expr = Load(first.buffer, first.index, where, self.expr())
        else:
            fn = _FUNCTION[self.take()]
            second = self.expr()
            out = Call(fn, (first, second), BOOL if fn in COMPARISONS else first.dtype)
        self.take(")")
        return out

    def table(self) -> Table:
        dtype = DTYPES[self.take()]
        self.take("{")
        values = tuple(self.listed(lambda: float(self.take()), "}"))
        self.take("[")
        index = self.expr()
        self.take("]")
        return Table(values, index, dtype)

    def call(self) -> Expr:
        name = self.take()
        self.take("(")
        if name in _KINDS and (self.peek() == ":" or self.peek(1) in ("<", "*") and self.tokens[self.at][0] == "word"):
            return self.reduction(name)
        args = self.listed(self.expr, ")")
        if name in DTYPES:
            return Cast(args[0], DTYPES[name])
        if name == "checked":
            extent = args[1]
            assert isinstance(extent, Const), "the extent of a checked index is a number"
            return Checked(args[0], int(extent.value))
        if name == "rescue":
            plain = args[1]
            assert isinstance(plain, Reduce) and plain.kind == "sum", "what rescues a value is a sum"
            return Rescue(args[0], plain.axes, plain.body)
        if name not in FUNCTIONS:
            self.fail(f"unknown function {name!r}")
        dtype = BOOL if name in PREDICATES or name in COMPARISONS else args[1 if name == "select" else 0].dtype
        return Call(name, tuple(args), dtype)

    def reduction(self, kind: str) -> Reduce:
        axes = []
        while not self.skip(":"):
            axes.append(self.axis())
            if self.peek() != ":":
                self.take(",")
        body = self.expr()
        self.take(")")
        return Reduce(kind, tuple(axes), body)
