"""What the assembly of a kernel's inner loops says: multiply-adds, calls, and registers that went to the stack.

LLVM marks no spills in llvmlite's assembly, but vector instructions that refer to the stack pointer are nothing else.

    for x in inner_loops(assembly(ir, target)):
        x.function, x.multiply_adds, x.spills, x.calls
"""
from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^([.\w$]+):")
_BRANCH = re.compile(r"^(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s+(?:.*,\s*)?([.\w$]+)$")
_VECTOR = re.compile(r"%[xyz]mm\d+|\b[qvds]\d+\b")
_STACK = re.compile(r"\(%rsp[,)]|\[sp[\],]")
_FUSED = re.compile(r"^(?:vfn?m(?:add|sub)\d*[ps][sd]|fmla|fmls|fmadd)\b")
_MULTIPLY = re.compile(r"^v?mul[ps][sd]\b")
_CALL = re.compile(r"^(?:callq?|blr?)\s")


@dataclass(frozen=True, slots=True)
class InnerLoop:
    """The instructions of a loop that has no loop inside it (or, with `loop` false, of a function without loops)."""

    function: str
    instructions: tuple[str, ...]
    loop: bool = True

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds; where the target has none, multiplications."""
        fused = sum(bool(_FUSED.match(i)) for i in self.instructions)
        return fused or sum(bool(_MULTIPLY.match(i)) for i in self.instructions)

    @property
    def spills(self) -> tuple[str, ...]:
        """Vector instructions that read or write the stack. Outside of loops, a function may save its caller's registers."""
        return tuple(i for i in self.instructions if _STACK.search(i) and _VECTOR.search(i) and (self.loop or not _saves(i)))

    @property
    def calls(self) -> tuple[str, ...]:
        return tuple(i for i in self.instructions if _CALL.match(i))


def _saves(i: str) -> bool:
    """Whether an instruction of AArch64 may be the saving of a callee-saved register (the low halves of v8 to v15)."""
    return bool(re.match(r"^(?:stp|ldp|str|ldr)\s+d(?:[89]|1[0-5])\b", i))


def functions(assembly: str) -> dict[str, tuple[str, ...]]:
    """Function name -> its lines (labels and instructions), without directives and comments."""
    names = set(re.findall(r"^\s*\.type\s+([.\w$]+),\s*[@%]function", assembly, re.M))
    out: dict[str, list[str]] = {}
    current: list[str] | None = None
    for raw in assembly.splitlines():
        line = re.sub(r"\s*(?:##|//|#\s).*$", "", raw).strip()
        if (m := _LABEL.match(line)) and m[1] in names:
            current = out.setdefault(m[1], [])
        elif line.startswith((".Lfunc_end", ".section")):
            current = None
        elif current is not None and line and (m or not line.startswith(".")):
            current.append(re.sub(r"\s+", " ", line))
    return {k: tuple(v) for k, v in out.items()}


def inner_loops(assembly: str, function: str = "") -> list[InnerLoop]:
    """The innermost loops of all functions whose name contains `function`; of one without loops, all of it."""
    found = []
    for name, lines in functions(assembly).items():
        if function not in name:
            continue
        spans = _loops(lines)
        inner = [(a, b) for a, b in spans if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in spans)]
        for a, b in inner:
            found.append(InnerLoop(name, _instructions(lines[a:b + 1])))
        if not inner:
            found.append(InnerLoop(name, _instructions(lines), loop=False))
    return found


def _loops(lines: tuple[str, ...]) -> list[tuple[int, int]]:
    """(first line, last line) of each backward branch and what it jumps over."""
    labels = {m[1]: k for k, line in enumerate(lines) if (m := _LABEL.match(line))}
    spans = set()
    for k, line in enumerate(lines):
        if (m := _BRANCH.match(line)) and labels.get(m[1], k + 1) <= k:
            spans.add((labels[m[1]], k))
    return sorted(spans)


def _instructions(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line for line in lines if not _LABEL.match(line))
