"""The machine that turns a state into a segment: runs tasks, answers questions about values, cuts where it must."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ....errors import UnsupportedError
from ....ir.builder import GraphBuilder
from ....ir.graph import Attrs, Constant, Graph, Node, Value
from ....ir.op import OPS, OnnxNode, importer_for
from ....ir.types import TensorSpec, TensorType
from ..source import AnySpec, Continuation, Data, HostStep, InputSpec, NeedsValue, Path, Ref, Segment, Source, Tree, ValueType, leaves
from .graphs import Scope
from .state import Feed, Item, Known, State, Stored, Task, Weight

MAX_TASKS = 200_000      # nodes after unrolling: beyond this a loop is not worth compiling
STATIC_ELEMENTS = 8      # integer inputs up to this size (shapes, flags) are specialised by value rather than cut off
WEIGHT_ELEMENTS = 64     # constants beyond this size are weights whatever their dtype

SourceMaker = Callable[[State, "tuple[InputSpec, ...]", frozenset[str]], Source]


class _Cut(Exception):
    """The current task cannot go on in this segment: it needs `value`, or the host's evaluation of `step`."""

    def __init__(self, value: Value | None, step: tuple[str, Attrs, tuple[Value | None, ...]] | None = None):
        super().__init__()
        self.value, self.step = value, step


class ImportBuilder(GraphBuilder):
    """A builder that names values after the model's and hands data-dependent ops to the importer."""

    def __init__(self, name: str, reserved: frozenset[str], host: Callable[[str, Attrs, tuple[Value | None, ...]], tuple[Value, ...]]):
        super().__init__(name)
        self._host = host
        self._reserved = set(reserved)
        self._taken |= self._reserved
        self.wanted: tuple[str, ...] = ()  # names of the outputs of the model's node under import
        self.weight_names: dict[str, str] = {}

    def named(self, make: Callable[[str], Value], name: str) -> Value:
        """`make(name)`, with a name that was kept free for it."""
        if name in self._reserved:
            self._reserved.discard(name)
            self._taken.discard(name)
        return make(name)

    def emit(self, name: str, inputs: Sequence[Value | None], attrs_: Attrs | None = None, hint: str = "v",
             names: Sequence[str] = (), **attrs: object) -> tuple[Value, ...]:
        if OPS[name].data_dependent:
            from ....ir.builder import _plain
            a = attrs_ if attrs_ is not None else OPS[name].Attrs(**{k: _plain(v) for k, v in attrs.items()})
            return self._host(name, a, tuple(inputs))
        if not names and hint == "v" and self.wanted:
            names = tuple(w or "v" for w in self.wanted)
            hint = names[0]
        return super().emit(name, inputs, attrs_, hint, names, **attrs)


class Importer:
    """One import of a state, for given input types and static values."""

    def __init__(self, state: State, name: str, types: Mapping[str, ValueType], values: Mapping[str, Data], reserved: frozenset[str],
                 make_source: SourceMaker):
        self.builder = ImportBuilder(name, reserved, self._host_op)
        self.env: dict[str, Item] = {}
        self.tasks: list[Task] = list(reversed(state.tasks))
        self.scopes = state.scopes
        self.where = "the model"
        self._state, self._values, self._make_source = state, values, make_source
        self._paths: list[Path] = []
        self._asked = 0
        self._feeds = {n: self._feed(n, t) for n, t in types.items()}
        self._weights: dict[str, Value] = {}
        self.env = {k: self._materialise(s) for k, s in state.env.items()}
        self._answers = {k: self._materialise(s) for k, s in state.answers.items()}

    # -- values ------------------------------------------------------------------------------------------------------
    def _feed(self, name: str, t: ValueType) -> Item:
        if name in self._values:
            return self._literal(name, self._values[name])
        return self._feed_leaves(iter(list(leaves((name,), t))), t)

    def _feed_leaves(self, it: Iterator[tuple[Path, TensorType]], t: ValueType) -> Item:
        if t is None:
            return None
        if isinstance(t, TensorType):
            path, _ = next(it)
            self._paths.append(path)
            return self.builder.named(lambda n: self.builder.input(n, t), ".".join(map(str, path)))
        return tuple(self._feed_leaves(it, e) for e in t.elements)

    def _literal(self, name: str, data: Data) -> Item:
        if data is None:
            return None
        if isinstance(data, (list, tuple)):
            return tuple(self._literal(name, x) for x in data)
        return self.builder.constant(np.asarray(data), name=name)

    def _materialise(self, s: Stored) -> Item:
        if isinstance(s, tuple):
            return tuple(self._materialise(x) for x in s)
        if isinstance(s, Known):
            return self.builder.constant(s.array)
        if isinstance(s, Weight):
            return self.weight(s.name, s.array)
        return None if s is None else self._feeds[s.name]

    def weight(self, name: str, array: np.ndarray) -> Value:
        """The updatable constant of the model's name `name`; made once."""
        if name not in self._weights:
            v = self.builder.named(lambda n: self.builder.weight(n, array), name)
            self._weights[name] = v
            self.builder.weight_names[name] = v.name
        return self._weights[name]

    def constant(self, name: str, array: np.ndarray, from_node: bool = False) -> Value:
        """A constant of the model: a weight if it is large, or an initializer of several floats; otherwise, and where it only
        numbers positions, a literal."""
        floats = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
        if (array.size > WEIGHT_ELEMENTS and not _counts(array)) or (floats and array.size > 1 and not from_node):
            return self.weight(name, array)
        return self.builder.named(lambda n: self.builder.constant(array, name=n), name)

    def get(self, scope: Scope, name: str) -> Item:
        """What `name` stands for in `scope`. Initializers are decoded here, at their first use."""
        if not name:
            return None
        owner = scope.owner(name)
        key = owner.own_key(name)
        if key not in self.env and owner.initializers is not None and name in owner.baked:
            self.env[key] = self.constant(key, owner.initializers.array(name))
        assert key in self.env, f"{key} is not computed yet"
        return self.env[key]

    def literal(self, v: Value) -> np.ndarray | None:
        return self.builder.value_of(v)

    # -- questions ---------------------------------------------------------------------------------------------------
    def static_value(self, v: Value) -> np.ndarray:
        """The value of `v` while the model is imported; cuts the model or specialises it where it is not known."""
        question, self._asked = self._asked, self._asked + 1
        known = self._known(v)
        if known is not None:
            return known
        if question in self._answers:
            answer = self._answers[question]
            assert isinstance(answer, Value)
            known = self.builder.value_of(answer)
            assert known is not None
            return known
        names = self._small_roots(v)
        if names:
            raise NeedsValue(names, self.where)
        raise _Cut(v)

    def _known(self, v: Value) -> np.ndarray | None:
        """The array of a literal, or of what follows from constants alone; weights among those become literals, since
        the graph now depends on their values."""
        if (a := self.builder.value_of(v)) is not None:
            return a
        nodes, inputs, weights = self._ancestry(v)
        if inputs:
            return None
        for w in weights:
            c = self.builder.constants[w.name]
            self.builder.constants[w.name] = Constant(c.value, c.array, updatable=False)
            self.builder.weight_names = {k: n for k, n in self.builder.weight_names.items() if n != w.name}
        env = {k: c.array for k, c in self.builder.constants.items()}
        with np.errstate(all="ignore"):
            for n in nodes:
                results = OPS[n.op].reference(n.attrs, *(None if x is None else env[x.name] for x in n.inputs))
                env.update({o.name: np.asarray(r) for o, r in zip(n.outputs, results, strict=True)})
        return env[v.name]

    def _ancestry(self, *values: Value) -> tuple[list[Node], list[Value], list[Value]]:
        """What `values` are computed from: (nodes in order, graph inputs, weights)."""
        want = {v.name for v in values}
        nodes: list[Node] = []
        for n in reversed(self.builder.nodes):
            if any(o.name in want for o in n.outputs):
                nodes.append(n)
                want.update(x.name for x in n.operands)
        weights = [c.value for c in self.builder.constants.values() if c.updatable and c.value.name in want]
        return nodes[::-1], [i for i in self.builder.inputs if i.name in want], weights

    def _small_roots(self, v: Value) -> frozenset[str]:
        """The source's inputs that decide `v`, if specialising by them is better than cutting the model before `v`."""
        _, inputs, _ = self._ancestry(v)
        small = all(i.type.size <= STATIC_ELEMENTS and not i.type.dtype.is_float for i in inputs)
        return frozenset(self._input_name(i) for i in inputs) if small or inputs == [v] else frozenset()

    def _input_name(self, v: Value) -> str:
        return str(self._paths[self.builder.inputs.index(v)][0])

    def _host_op(self, op: str, attrs: Attrs, inputs: tuple[Value | None, ...]) -> tuple[Value, ...]:
        """The outputs of a data-dependent op: computed now from constants, or by the host before this segment."""
        question, self._asked = self._asked, self._asked + 1
        if question in self._answers:
            answer = self._answers[question]
            assert isinstance(answer, tuple)
            return tuple(x for x in answer if isinstance(x, Value))
        _, roots, _ = self._ancestry(*(v for v in inputs if v is not None))
        if not roots:
            known = [None if v is None else self._known(v) for v in inputs]
            with np.errstate(all="ignore"):
                return tuple(self.builder.constant(np.asarray(a)) for a in OPS[op].evaluate(attrs, *known))
        raise _Cut(None, (op, attrs, inputs))

    # -- tasks -------------------------------------------------------------------------------------------------------
    def push(self, *tasks: Task) -> None:
        """Tasks to run next, in this order."""
        self.tasks.extend(reversed(tasks))

    def new_prefix(self, hint: str) -> str:
        self.scopes += 1
        return f"{hint}.{self.scopes}/"

    def apply(self, op_type: str, inputs: Sequence[Value | None], n_outputs: int = 1, opset: int = 18, **attrs: object) -> Value:
        """One ONNX operator on values at hand, as if the model had it here."""
        f = importer_for("", op_type, opset)
        if f is None:
            raise UnsupportedError(f"{self.where} needs {op_type}, which is not supported")
        out = f(OnnxNode(op_type, self.where, opset, tuple(inputs), dict(attrs), n_outputs, self.static_value), self.builder)
        first = out if isinstance(out, Value) else out[0]
        assert first is not None
        return first

    def run(self) -> Segment:
        """Runs all tasks. Raises NeedsValue, ModelError, UnsupportedError."""
        count = 0
        while self.tasks:
            task = self.tasks.pop()
            self._asked = 0
            count += 1
            if count > MAX_TASKS:
                raise UnsupportedError(f"{self.where}: unrolling the model's loops takes more than {MAX_TASKS:,} nodes")
            try:
                task.run(self)
            except _Cut as cut:
                return self._cut(task, cut)
            self._answers = {}
        return self._finish()

    def _finish(self) -> Segment:
        outputs: list[Value] = []

        def tree(x: Item) -> Tree:
            if x is None:
                return None
            if isinstance(x, tuple):
                return tuple(tree(e) for e in x)
            outputs.append(x)
            return len(outputs) - 1
        main = self._state.main
        results = tuple(tree(self.get(main, k)) for k in self._state.results)
        return Segment(self._graph(outputs), tuple(self._paths), results, self.builder.weight_names)

    def _graph(self, outputs: Sequence[Value]) -> Graph:
        """The graph of what `outputs` need; its inputs stay as they are."""
        nodes, _, _ = self._ancestry(*outputs)
        return self.builder.graph(tuple(outputs)).replace(nodes=nodes)

    # -- cutting -----------------------------------------------------------------------------------------------------
    def _cut(self, task: Task, cut: _Cut) -> Segment:
        tasks = (task, *reversed(self.tasks))
        keys = frozenset(self._state.results).union(*(t.reads() for t in tasks))
        border: dict[str, Value] = {}
        env = {k: self._store(self.env[k], border) for k in self.env if k in keys}
        answers = {k: self._store(v, border) for k, v in self._answers.items()}
        question = self._asked - 1
        static: frozenset[str] = frozenset()
        specs: list[InputSpec] = []
        step = None
        if cut.value is not None:
            if cut.value.name not in border:
                answers[question] = Feed(cut.value.name)
            border[cut.value.name] = cut.value
            static = frozenset({cut.value.name})
        inputs_needed = cut.step[2] if cut.step else ()
        outputs = [v for v in {**border, **{v.name: v for v in inputs_needed if v is not None}}.values()
                   if v not in self.builder.inputs and v.name not in self.builder.constants]
        refs = {v.name: Ref("output", k) for k, v in enumerate(outputs)}
        refs |= {v.name: Ref("input", k) for k, v in enumerate(self.builder.inputs)}
        if cut.step is not None:
            result = self.builder.fresh(f"{self.builder.wanted[0] if self.builder.wanted else 'host'}.result")
            answers[question] = Feed(result)
            specs.append(AnySpec(result))
            step = HostStep(cut.step[0], cut.step[1], tuple(self._step_input(v, refs) for v in inputs_needed), result)
        specs += [TensorSpec(v.name, v.type.shape, v.type.dtype.numpy) for v in border.values()]
        source = self._make_source(State(tasks, env, self._state.results, self._state.main, answers, self.scopes), tuple(specs), static)
        feeds = tuple((name, refs[name]) for name in border)
        return Segment(self._graph(outputs), tuple(self._paths), (), self.builder.weight_names, Continuation(step, source, feeds))

    def _step_input(self, v: Value | None, refs: Mapping[str, Ref]) -> Ref | np.ndarray | None:
        if v is None:
            return None
        c = self.builder.constants.get(v.name)
        return refs[v.name] if c is None else c.array

    def _store(self, x: Item, border: dict[str, Value]) -> Stored:
        if x is None:
            return None
        if isinstance(x, tuple):
            return tuple(self._store(e, border) for e in x)
        c = self.builder.constants.get(x.name)
        if c is None:
            border[x.name] = x
            return Feed(x.name)
        names = [n for n, v in self._weights.items() if v.name == x.name] if c.updatable else []
        return Weight(names[0], c.array) if names else Known(c.array)


def _counts(array: np.ndarray) -> bool:
    """Whether `array` holds 0, 1, 2, … along one dimension: integers that number positions, which nobody trains."""
    ramp = array.dtype.kind in "iu" and array.size == max(array.shape, default=0)
    return ramp and bool((array.reshape(-1) == np.arange(array.size)).all())
