"""LLVM IR text, line by line: names for values, loops, variables that LLVM turns into registers.

    c = Code("f", ("ptr x", "i64 n"))
    total = c.variable("double", "0.0")
    with c.loop("%n") as i:
        total.set(c("fadd double {}, {}", total.get(), c.load("double", c.at("double", "%x", i))))
    text = c.text()
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    """A stack slot, which LLVM turns into a register."""

    code: Code
    type: str
    slot: str

    def get(self) -> str:
        return self.code.load(self.type, self.slot)

    def set(self, value: str) -> None:
        self.code.store(self.type, value, self.slot)


class Code:
    """One function `void symbol(parameters)` under construction. A value is the text of an operand: "%v7" or "12"."""

    def __init__(self, symbol: str, parameters: Sequence[str]) -> None:
        self._head = f'define void @"{symbol}"({", ".join(p.replace(" ", " %") for p in parameters)}) nounwind {{'
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._declared: dict[str, str] = {}
        self._count = 0

    def text(self) -> str:
        return "\n".join([*self._declared.values(), "", self._head, "entry:", *self._slots, *self._lines, "  ret void", "}", ""])

    def __call__(self, form: str, *args: object) -> str:
        """A new value."""
        name = self._name()
        self._lines.append(f"  {name} = {form.format(*args)}")
        return name

    def do(self, form: str, *args: object) -> None:
        """An instruction without a result."""
        self._lines.append("  " + form.format(*args))

    def _name(self, stem: str = "%v") -> str:
        self._count += 1
        return f"{stem}{self._count}"

    # -- memory ------------------------------------------------------------------------------------------------------
    def at(self, kind: str, base: str, index: str | int) -> str:
        """The address of base[index]."""
        return self("getelementptr {}, ptr {}, i64 {}", kind, base, index)

    def load(self, kind: str, address: str, align: int = 0) -> str:
        return self("load {}, ptr {}{}", kind, address, f", align {align}" if align else "")

    def store(self, kind: str, value: str | int, address: str, align: int = 0) -> None:
        self.do("store {} {}, ptr {}{}", kind, value, address, f", align {align}" if align else "")

    def element(self, kind: str, base: str, index: str | int, to: str = "") -> str:
        """base[index], extended with zeros to the integer type `to`."""
        v = self.load(kind, self.at(kind, base, index))
        return self("zext {} {} to {}", kind, v, to) if to else v

    def variable(self, kind: str, value: str | int) -> Variable:
        slot = self._name("%s")
        self._slots.append(f"  {slot} = alloca {kind}")
        found = Variable(self, kind, slot)
        found.set(str(value))
        return found

    # -- control -----------------------------------------------------------------------------------------------------
    @contextmanager
    def loop(self, end: str | int, begin: str | int = 0, step: int = 1) -> Iterator[str]:
        """for i in range(begin, end, step), i64."""
        index = self.variable("i64", begin)
        with self.loop_while(lambda: self("icmp slt i64 {}, {}", index.get(), end)):
            i = index.get()
            yield i
            index.set(self("add i64 {}, {}", i, step))

    @contextmanager
    def loop_while(self, condition: object) -> Iterator[None]:
        """`condition`: a function that makes the code for an i1, evaluated before each round."""
        k = self._name("")
        assert callable(condition)
        self._lines += [f"  br label %head{k}", f"head{k}:"]
        going = condition()
        self._lines += [f"  br i1 {going}, label %body{k}, label %end{k}", f"body{k}:"]
        yield
        self._lines += [f"  br label %head{k}", f"end{k}:"]

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        k = self._name("")
        self._lines += [f"  br i1 {condition}, label %then{k}, label %end{k}", f"then{k}:"]
        yield
        self._lines += [f"  br label %end{k}", f"end{k}:"]

    # -- functions and vectors ---------------------------------------------------------------------------------------
    def call(self, result: str, function: str, *args: tuple[str, str | int]) -> str:
        """A call of an intrinsic; args: (type, value). Its result, "" for void."""
        self._declared.setdefault(function, f"declare {result} @{function}({', '.join(t for t, _ in args)})")
        text = f"call {result} @{function}({', '.join(f'{t} {v}' for t, v in args)})"
        if result == "void":
            self._lines.append(f"  {text}")
            return ""
        return self("{}", text)

    def splat(self, n: int, kind: str, value: str | int) -> str:
        """<n x kind> of equal elements."""
        one = self("insertelement <{} x {}> poison, {} {}, i64 0", n, kind, kind, value)
        return self("shufflevector <{0} x {1}> {2}, <{0} x {1}> poison, <{0} x i32> zeroinitializer", n, kind, one)

    def gather(self, n: int, kind: str, base: str, index: str, width: str = "i32") -> str:
        """<n x kind> of base[index[k]]; index: <n x width>."""
        where = self("getelementptr {}, ptr {}, <{} x {}> {}", kind, base, n, width, index)
        short = {"float": "f32", "double": "f64"}.get(kind, kind)
        ones = f"<{', '.join(['i1 true'] * n)}>"
        return self.call(f"<{n} x {kind}>", f"llvm.masked.gather.v{n}{short}.v{n}p0", (f"<{n} x ptr>", where),
                         ("i32", {"i8": 1, "i32": 4, "float": 4}.get(kind, 8)), (f"<{n} x i1>", ones), (f"<{n} x {kind}>", "poison"))

    def shuffle(self, n: int, kind: str, a: str, b: str, lanes: Sequence[int]) -> str:
        """Lanes of <n x kind> a and b."""
        picked = f"<{', '.join(f'i32 {k}' for k in lanes)}>"
        return self("shufflevector <{0} x {1}> {2}, <{0} x {1}> {3}, <{4} x i32> {5}", n, kind, a, b, len(lanes), picked)


def constant(n: int, kind: str, values: Sequence[int]) -> str:
    """The text of <n x kind> of constants."""
    assert len(values) == n
    return f"<{', '.join(f'{kind} {v}' for v in values)}>"
