"""The graph's text form, both ways: `parse_graph(print_graph(g), arrays_of(g)) == g`.

    graph @mlp(%x: f32[8,64]) -> f32[8,10] {
      const @w: f32[64,10] weight
      const @b: f32[2] weight = [0.5, -1.0]
      const @shape: i64[2] = [8, 10]
      %h = matmul(%x, @w) : f32[8,10]  # /layer/MatMul
      %s = softmax(%h) {axis=-1} : f32[8,10]
      return %s
    }

`%` marks inputs and results of nodes, `@` constants; an absent optional input is `none`. Attributes that equal their
defaults are left out. Constants of at most 16 elements carry their values; larger ones are named only and their arrays
travel beside the text (`arrays_of`, `save_graph`). After `#` stands the node of the model that this one came from.
"""
from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import numpy as np

from ..errors import ModelError
from .graph import Attrs, Constant, Graph, Node, Value
from .op import OPS
from .types import DTYPES, DType, TensorType

INLINE_ELEMENTS = 16
_BARE = re.compile(r"\w(?:[\w./-]|:(?=[\w./-]))*")  # a ':' inside a name is never its last character
_TOKEN = re.compile(
    r"(?P<space>[ \t\r]+)|(?P<newline>\n)|(?P<comment>#[^\n]*)|(?P<name>[%@](?:\"(?:[^\"\\]|\\.)*\"|" + _BARE.pattern + r"))"
    r"|(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<arrow>->)|(?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf|nan)\b)"
    r"|(?P<word>[A-Za-z_]\w*)|(?P<punct>[(){}\[\],:=])")


# -- printing --------------------------------------------------------------------------------------------------------
def print_graph(g: Graph) -> str:
    ins = ", ".join(f"{_ref(v, g)}: {v.type}" for v in g.inputs)
    outs = ", ".join(repr(v.type) for v in g.outputs)
    lines = [f"graph @{_name(g.name)}({ins}) -> {outs if len(g.outputs) == 1 else f'({outs})'} {{"]
    for c in g.constants.values():
        data = f" = {_array_text(c.array)}" if c.array.size <= INLINE_ELEMENTS else ""
        lines.append(f"  const {_ref(c.value, g)}: {c.value.type}{' weight' if c.updatable else ''}{data}")
    lines.extend("  " + node_text(n, g) for n in g.nodes)
    lines.append(f"  return {', '.join(_ref(v, g) for v in g.outputs)}".rstrip())
    return "\n".join([*lines, "}"])


def node_text(n: Node, g: Graph | None = None) -> str:
    """One line for one node; operands that are constants of `g` are marked by `@`."""
    outs = ", ".join(_ref(v, None) for v in n.outputs)
    ins = ", ".join("none" if v is None else _ref(v, g) for v in n.inputs)
    attrs = attrs_text(n.attrs)
    types = ", ".join(repr(v.type) for v in n.outputs)
    source = f"  # {json.dumps(n.source, ensure_ascii=False)[1:-1]}" if n.source else ""
    return f"{outs} = {n.op}({ins}){f' {{{attrs}}}' if attrs else ''} : {types}{source}"


def attrs_text(attrs: Attrs) -> str:
    """`axis=1, perm=(0, 2, 1)`: the attributes that differ from their defaults."""
    out = []
    for f in dataclasses.fields(attrs):
        value = getattr(attrs, f.name)
        if type(value) is not type(f.default) or value != f.default:
            out.append(f"{f.name}={_attr_text(value)}")
    return ", ".join(out)


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _ref(v: Value, g: Graph | None) -> str:
    return ("@" if g is not None and v.name in g.constants else "%") + _name(v.name)


def _attr_text(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case DType():
            return value.name
        case tuple():
            return "(" + ", ".join(map(_attr_text, value)) + (",)" if len(value) == 1 else ")")
    raise AssertionError(f"an attribute of type {type(value).__name__} has no text form")


def _array_text(a: np.ndarray) -> str:
    def one(x: np.generic) -> str:
        if a.dtype.kind == "b":
            return "true" if x else "false"
        return str(x)  # NumPy prints the shortest text that reads back as the same value of this dtype
    return one(a.ravel()[0]) if a.ndim == 0 else "[" + ", ".join(one(x) for x in a.ravel()) + "]"


def arrays_of(g: Graph) -> dict[str, np.ndarray]:
    """The arrays of the constants whose values the text does not hold."""
    return {k: c.array for k, c in g.constants.items() if c.array.size > INLINE_ELEMENTS}


# -- parsing ---------------------------------------------------------------------------------------------------------
def parse_graph(text: str, arrays: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph that `text` describes; `arrays` holds the constants that are named only. Raises ModelError with the
    line where the text is wrong, a name is unknown or an array is missing. Types are taken as written: see `verify`."""
    p = _Parser(text, arrays or {})
    try:
        return p.graph()
    except (ValueError, OverflowError) as e:  # a number or string that Python cannot read
        p.fail(str(e))


def parse_attrs(op: str, text: str) -> Attrs:
    """The inverse of `attrs_text` for one operator."""
    return _Parser(text + "}", {}).attrs(op)


class _Parser:
    def __init__(self, text: str, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.line = 1
        self.tokens: list[tuple[str, str, int]] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {}
        at = 0
        while at < len(text):
            m = _TOKEN.match(text, at)
            if m is None:
                self.fail(f"unexpected character {text[at]!r}")
            if m.lastgroup != "space" and not (m.lastgroup == "newline" and self.tokens and self.tokens[-1][0] == "newline"):
                self.tokens.append((str(m.lastgroup), m[0], self.line))
            self.line += m[0].count("\n")
            at = m.end()
        self.at = 0

    def fail(self, message: str) -> NoReturn:
        raise ModelError(f"graph text, line {self.line}: {message}")

    def peek(self) -> tuple[str, str]:
        if self.at == len(self.tokens):
            self.fail("the text ends too early")
        kind, text, self.line = self.tokens[self.at]
        return kind, text

    def take(self, what: str) -> str:
        """The next token, which must be `what` itself or of the kind `what`."""
        kind, text = self.peek()
        if what not in (kind, text):
            self.fail(f"expected {what}, found {text!r}")
        self.at += 1
        return text

    def skip(self, what: str) -> bool:
        if self.at < len(self.tokens) and what in self.tokens[self.at][:2]:
            self.at += 1
            return True
        return False

    def newline(self) -> str:
        """The end of a line; returns its comment."""
        comment = self.take("comment")[1:].strip() if self.peek()[0] == "comment" else ""
        self.take("newline")
        return comment

    def name(self) -> str:
        text = self.take("name")[1:]
        return json.loads(text) if text.startswith('"') else text

    def type(self) -> TensorType:
        word = self.take("word")
        if word not in DTYPES:
            self.fail(f"unknown element type {word!r}")
        self.take("[")
        shape: list[int] = []
        while not self.skip("]"):
            shape.append(int(self.take("number")))
            if self.peek()[1] != "]":
                self.take(",")
        return TensorType(DTYPES[word], tuple(shape))

    def define(self, name: str, type: TensorType) -> Value:
        if name in self.values:
            self.fail(f"{name!r} is defined twice")
        self.values[name] = Value(name, type)
        return self.values[name]

    def use(self) -> Value | None:
        if self.skip("none"):
            return None
        name = self.name()
        if name not in self.values:
            self.fail(f"{name!r} is used before it is defined")
        return self.values[name]

    def graph(self) -> Graph:
        while self.peek()[0] in ("newline", "comment"):
            self.at += 1
        self.take("graph")
        name = self.name()
        self.take("(")
        inputs: list[Value] = []
        while not self.skip(")"):
            inputs.append(self.typed_name())
            if self.peek()[1] != ")":
                self.take(",")
        self.take("arrow")
        declared = self.type_list()
        self.take("{")
        self.newline()
        nodes: list[Node] = []
        while self.peek()[1] != "return":
            if self.skip("const"):
                self.constant()
            else:
                nodes.append(self.node())
        outputs = self.returned()
        if declared != tuple(v.type for v in outputs):
            self.fail(f"the graph returns {[v.type for v in outputs]}, its header says {list(declared)}")
        return Graph(name, tuple(inputs), outputs, tuple(nodes), MappingProxyType(self.constants))

    def typed_name(self) -> Value:
        name = self.name()
        self.take(":")
        return self.define(name, self.type())

    def type_list(self) -> tuple[TensorType, ...]:
        if not self.skip("("):
            return (self.type(),)
        types: list[TensorType] = []
        while not self.skip(")"):
            types.append(self.type())
            self.skip(",")
        return tuple(types)

    def returned(self) -> tuple[Value, ...]:
        self.take("return")
        outputs: list[Value] = []
        while self.peek()[0] == "name":
            v = self.use()
            assert v is not None
            outputs.append(v)
            self.skip(",")
        self.newline()
        self.take("}")
        return tuple(outputs)

    def constant(self) -> None:
        v = self.typed_name()
        updatable = self.skip("weight")
        if self.skip("="):
            a = np.array(self.elements(), v.type.dtype.numpy)
            if a.size != v.type.size:
                self.fail(f"@{v.name} has {a.size} values for {v.type}")
        elif v.name in self.arrays:
            a = np.asarray(self.arrays[v.name])
            if a.dtype != v.type.dtype.numpy and a.dtype.kind in "Vu" and a.dtype.itemsize == v.type.dtype.bytes:
                a = a.view(v.type.dtype.numpy)  # .npy files have no bf16
        else:
            self.fail(f"no array is given for the constant @{v.name}")
        if a.dtype != v.type.dtype.numpy or a.size != v.type.size:
            self.fail(f"@{v.name} is declared {v.type}, its array is {a.dtype}{list(a.shape)}")
        self.constants[v.name] = Constant(v, np.ascontiguousarray(a).reshape(v.type.shape), updatable)
        self.newline()

    def elements(self) -> list[int | float | bool]:
        if not self.skip("["):
            return [self.element()]
        out: list[int | float | bool] = []
        while not self.skip("]"):
            out.append(self.element())
            self.skip(",")
        return out

    def element(self) -> int | float | bool:
        value = self.attr()
        if not isinstance(value, (int, float)):
            self.fail(f"{value!r} is not a number")
        return value

    def node(self) -> Node:
        names = [self.name()]
        while self.skip(","):
            names.append(self.name())
        self.take("=")
        op = self.take("word")
        if op not in OPS:
            self.fail(f"unknown operator {op!r}")
        self.take("(")
        ins: list[Value | None] = []
        while not self.skip(")"):
            ins.append(self.use())
            if self.peek()[1] != ")":
                self.take(",")
        attrs = self.attrs(op) if self.skip("{") else self.make_attrs(op, {})
        self.take(":")
        outs = [self.define(names[0], self.type())]
        for n in names[1:]:
            self.take(",")
            outs.append(self.define(n, self.type()))
        comment = self.newline()
        return Node(op, tuple(ins), attrs, tuple(outs), json.loads(f'"{comment}"') if comment else "")

    def attrs(self, op: str) -> Attrs:
        found: dict[str, object] = {}
        while not self.skip("}"):
            key = self.take("word")
            self.take("=")
            found[key] = self.attr()
            self.skip(",")
        return self.make_attrs(op, found)

    def make_attrs(self, op: str, found: dict[str, object]) -> Attrs:
        try:
            return OPS[op].Attrs(**found)
        except TypeError as e:
            self.fail(f"{op}: {str(e).split('__init__() ')[-1]}")

    def attr(self) -> object:
        kind, text = self.peek()
        self.at += 1
        match kind:
            case "number" if text.lstrip("-") in ("inf", "nan"):
                return math.nan if "nan" in text else float(text)
            case "number":
                return float(text) if any(c in text for c in ".eE") else int(text)
            case "string":
                return json.loads(text)
            case "word" if text in DTYPES:
                return DTYPES[text]
            case "word" if text in ("true", "false", "none"):
                return {"true": True, "false": False, "none": None}[text]
            case "punct" if text == "(":
                items: list[object] = []
                while not self.skip(")"):
                    items.append(self.attr())
                    self.skip(",")
                return tuple(items)
        self.fail(f"{text!r} is not a value")


# -- files -----------------------------------------------------------------------------------------------------------
def save_graph(g: Graph, path: Path, weights_path: Path | None = None) -> None:
    """Writes `path` (.twg) and, for constants too large for the text, an .npz beside it. With `weights_path` the weights
    go there instead, once: the snapshots of one compilation share them. Files appear whole or not at all."""
    arrays = arrays_of(g)
    if weights_path is not None:
        if not weights_path.exists():
            _write_atomically(weights_path, {k: c.array for k, c in g.constants.items() if c.updatable})
        arrays = {k: a for k, a in arrays.items() if not g.constants[k].updatable}
    if arrays:
        _write_atomically(path.with_suffix(".npz"), arrays)
    _write_atomically(path, print_graph(g) + "\n")


def load_graph(path: Path) -> Graph:
    """The graph saved at `path`, with arrays from the .npz beside it and from `weights.npz` in its folder. Raises
    ModelError for files that are damaged."""
    arrays: dict[str, np.ndarray] = {}
    try:
        for f in (path.with_name("weights.npz"), path.with_suffix(".npz")):
            if f.exists():
                with np.load(f, allow_pickle=False) as z:
                    arrays.update({k: z[k] for k in z.files})
        text = path.read_text(encoding="utf-8")
    except (ValueError, EOFError, zipfile.BadZipFile) as e:  # UnicodeDecodeError is a ValueError
        raise ModelError(f"{path} is not a snapshot of a graph, or an array file beside it is damaged: {e}") from None
    return parse_graph(text, arrays)


def _write_atomically(path: Path, content: str | dict[str, np.ndarray]) -> None:
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as f:
            if isinstance(content, str):
                f.write(content.encode())
            else:
                _write_npz(f, content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _write_npz(f: io.BufferedWriter, arrays: Mapping[str, np.ndarray]) -> None:
    """np.savez would not do: it takes names as keyword arguments (`file` is one) and bf16 only as raw bytes."""
    with zipfile.ZipFile(f, "w", allowZip64=True) as z:
        for name, a in arrays.items():
            with z.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, a.view(np.uint16) if a.dtype.name == "bfloat16" else a, allow_pickle=False)
