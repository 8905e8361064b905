"""LSTM, GRU and RNN: the input projection of all steps is one matmul, the steps are a loop (`scan`) around the cell."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ..builder import GraphBuilder
from ..graph import Value
from ..op import OnnxNode, from_onnx
from ..types import TensorType
from .loop import scan
from .shape import full, reshape, transpose
from .slices import concat, slice_axis

_DEFAULTS = {"affine": (1.0, 0.0), "leakyrelu": (0.01, None), "thresholdedrelu": (1.0, None), "scaledtanh": (1.0, 1.0),
             "hardsigmoid": (0.2, 0.5), "elu": (1.0, None)}
_PLAIN = {"relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "softsign": "softsign", "softplus": "softplus"}
_PARAMETERS = {"leakyrelu": "leaky_relu", "thresholdedrelu": "thresholded_relu", "hardsigmoid": "hard_sigmoid", "elu": "elu"}


@dataclass(frozen=True)
class Pieces:
    """The small parts that cells are made of, in the graph that `b` builds. H is the hidden size."""

    b: GraphBuilder
    like: TensorType
    hidden: int
    clip: float | None

    def number(self, v: float) -> Value:
        return self.b.constant(np.asarray(v, self.like.dtype.numpy))

    def add(self, a: Value, c: Value) -> Value:
        return self.b.op("add", a, c)

    def mul(self, a: Value, c: Value) -> Value:
        return self.b.op("mul", a, c)

    def matmul(self, a: Value, c: Value) -> Value:
        return self.b.op("matmul", a, c)

    def clipped(self, v: Value) -> Value:
        """v limited to [-clip, clip], as the spec does before each activation."""
        if self.clip is None:
            return v
        return self.b.op("min", self.b.op("max", v, self.number(-self.clip)), self.number(self.clip))

    def part(self, v: Value, k: int, count: int = 1) -> Value:
        """`count` of the gates that lie side by side in v's last dimension, from the k-th on."""
        return slice_axis(self.b, v, v.type.rank - 1, k * self.hidden, count * self.hidden)


Activation = Callable[[Pieces, Value], Value]
State = tuple[Value, ...]
Step = Callable[[Pieces, Value, State, Sequence[Value]], State]  # (pieces, projection of x, state, invariants) -> state
Run = tuple[Value, State]                                        # hidden states of all steps [steps, batch, H], last state


class Cell:
    """What all steps of one recurrent node share: the builder, sizes, clipping and activations.

    X is [steps, batch, input] here whatever the node's layout.
    """

    def __init__(self, n: OnnxNode, b: GraphBuilder, gates: int, defaults: Sequence[str]):
        self.n, self.b, self.gates = n, b, gates
        self.batch_first = bool(n.attrs.get("layout", 0))
        x = n.need(0)
        if x.type.rank != 3 or n.need(1).type.rank != 3 or n.need(2).type.rank != 3:
            raise ShapeError(f"{n.op_type} {n.name!r}: X {x.type}, W {n.need(1).type} and R {n.need(2).type} must have rank 3")
        self.x = transpose(b, x, (1, 0, 2)) if self.batch_first else x
        self.steps, self.batch, _ = self.x.type.shape
        self.hidden = n.need(2).type.shape[2]
        direction = str(n.attrs.get("direction", "forward"))
        self.directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(direction, ())
        if len(self.directions) != n.need(1).type.shape[0]:
            raise ShapeError(f"{n.op_type} {n.name!r}: direction {direction!r} does not fit W {n.need(1).type}")
        self.activations = self._activations(list(defaults))
        self.lengths = n.input(4)
        clip = n.attrs.get("clip")
        self.clip = None if clip is None else float(clip)  # type: ignore[arg-type]
        self.pieces = Pieces(b, self.x.type, self.hidden, self.clip)

    def _activations(self, defaults: list[str]) -> list[Activation]:
        names = [str(a) for a in (self.n.attrs.get("activations") or defaults * len(self.directions))]  # type: ignore[union-attr]
        if len(names) != len(defaults) * len(self.directions):
            raise ShapeError(f"{self.n.op_type} {self.n.name!r}: {len(names)} activations for {len(self.directions)} directions")
        alphas = iter(self.n.attrs.get("activation_alpha") or ())  # type: ignore[call-overload]
        betas = iter(self.n.attrs.get("activation_beta") or ())  # type: ignore[call-overload]
        out = []
        for name in names:
            alpha, beta = _DEFAULTS.get(name.lower(), (None, None))
            alpha = None if alpha is None else float(next(alphas, alpha))
            beta = None if beta is None else float(next(betas, beta))
            out.append(self._activation(name, alpha, beta))
        return out

    def _activation(self, name: str, alpha: float | None, beta: float | None) -> Activation:
        key = name.lower()
        if key in _PLAIN:
            return lambda p, v: p.b.op(_PLAIN[key], v)
        if key in _PARAMETERS:
            attrs = {"alpha": alpha} | ({} if beta is None else {"beta": beta})
            return lambda p, v: p.b.op(_PARAMETERS[key], v, **attrs)
        if alpha is None or beta is None:
            raise UnsupportedError(f"{self.n.op_type} {self.n.name!r}: activation {name!r} is not supported")
        if key == "affine":
            return lambda p, v: p.add(p.mul(p.number(alpha), v), p.number(beta))
        return lambda p, v: p.mul(p.number(alpha), p.b.op("tanh", p.mul(p.number(beta), v)))

    # -- weights and states, by direction ------------------------------------------------------------------------------
    def one(self, i: int, d: int) -> Value | None:
        """Entry d of input i's first dimension (directions), without that dimension."""
        v = self.n.input(i)
        return None if v is None else reshape(self.b, slice_axis(self.b, v, 0, d, 1), v.type.shape[1:])

    def weight(self, i: int, d: int) -> Value:
        """W or R of direction d, transposed: [in, gates * H]."""
        w = self.one(i, d)
        assert w is not None
        return transpose(self.b, w, (1, 0))

    def biases(self, d: int) -> tuple[Value | None, Value | None]:
        """Those of the input and of the recurrence, [gates * H] each."""
        v, size = self.one(3, d), self.gates * self.hidden
        return (None, None) if v is None else (slice_axis(self.b, v, 0, 0, size), slice_axis(self.b, v, 0, size, size))

    def initial(self, i: int, d: int) -> Value:
        """The initial state in input i, zeros where absent: [batch, H]."""
        v = self.n.input(i)
        if v is None:
            return full(self.b, (self.batch, self.hidden), 0, self.x.type)
        if self.batch_first:
            return reshape(self.b, slice_axis(self.b, v, 1, d, 1), (self.batch, self.hidden))
        state = self.one(i, d)
        assert state is not None
        return state

    def projected(self, d: int, bias: Value | None) -> Value:
        """X @ W of all steps, plus bias: [steps, batch, gates * H]."""
        flat = reshape(self.b, self.x, (self.steps * self.batch, self.x.type.shape[2]))
        y = self.pieces.matmul(flat, self.weight(1, d))
        return reshape(self.b, y if bias is None else self.pieces.add(y, bias), (self.steps, self.batch, self.gates * self.hidden))

    # -- the time loop -------------------------------------------------------------------------------------------------
    def run(self, d: int, projected: Value, step: Step, state: State, invariants: Sequence[Value]) -> Run:
        """The loop over `step`, backwards for a reverse direction. Beyond an entry's length its state stays and its output
        is 0."""
        body, lengths = GraphBuilder("step"), self.lengths
        p = Pieces(body, self.x.type, self.hidden, self.clip)
        old = tuple(body.input("hidden" if k == 0 else "cell", v.type) for k, v in enumerate(state))
        x = body.input("x", TensorType(projected.type.dtype, projected.type.shape[1:]))
        at = None if lengths is None else body.input("t", TensorType(lengths.type.dtype, ()))
        fixed = [body.input("r", v.type) for v in invariants]
        new = step(p, x, old, fixed)
        y, rows, rest = new[0], [projected], list(invariants)
        if lengths is not None and at is not None:
            live = reshape(body, body.op("lt", at, body.input("lengths", lengths.type)), (self.batch, 1))
            y = body.op("where", live, new[0], p.number(0))
            new = tuple(body.op("where", live, a, o) for a, o in zip(new, old, strict=True))
            rows.append(self.b.constant(np.arange(self.steps, dtype=lengths.type.dtype.numpy)))
            rest.append(lengths)
        back = self.directions[d]
        *last, ys = scan(self.b, body, [*new, y], self.steps, state, rows, rest, (back,) * len(rows), (back,))
        return ys, tuple(last)

    def outputs(self, runs: list[Run]) -> list[Value]:
        """Y, Y_h (and Y_c) in the node's layout, from each direction's outputs."""
        b, (s, m, h, d) = self.b, (self.steps, self.batch, self.hidden, len(runs))
        y = concat(b, [reshape(b, ys, (s, 1, m, h)) for ys, _ in runs], 1)
        states = [concat(b, [reshape(b, last[k], (1, m, h)) for _, last in runs], 0) for k in range(len(runs[0][1]))]
        if self.batch_first:
            y, states = transpose(b, y, (2, 0, 1, 3)), [transpose(b, v, (1, 0, 2)) for v in states]
        assert y.type.shape in ((s, d, m, h), (m, s, d, h))
        return [y, *states]


@from_onnx("LSTM")
def _lstm(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    c = Cell(n, b, 4, ("Sigmoid", "Tanh", "Tanh"))
    return c.outputs([_lstm_direction(c, d) for d in range(len(c.directions))])


def _lstm_direction(c: Cell, d: int) -> Run:
    f, g, h = c.activations[3 * d:3 * d + 3]
    wb, rb = c.biases(d)
    projected = c.projected(d, None if wb is None or rb is None else c.pieces.add(wb, rb))
    peepholes = c.one(7, d)  # what the input, output and forget gates see of the cell state, [H] each
    coupled = bool(c.n.attrs.get("input_forget", 0))

    def step(p: Pieces, x: Value, state: State, fixed: Sequence[Value]) -> State:
        hidden, cell = state
        gates = p.add(x, p.matmul(hidden, fixed[0]))

        def gate(k: int, peephole: int, old: Value) -> Value:
            v = p.part(gates, k)
            return f(p, p.clipped(v if len(fixed) == 1 else p.add(v, p.mul(p.part(fixed[1], peephole), old))))
        i = gate(0, 0, cell)
        forget = p.b.op("sub", p.number(1), i) if coupled else gate(2, 2, cell)
        new = p.add(p.mul(forget, cell), p.mul(i, g(p, p.clipped(p.part(gates, 3)))))
        return p.mul(gate(1, 1, new), h(p, new)), new
    fixed = [c.weight(2, d), *([] if peepholes is None else [peepholes])]
    return c.run(d, projected, step, (c.initial(5, d), c.initial(6, d)), fixed)


@from_onnx("GRU")
def _gru(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    c = Cell(n, b, 3, ("Sigmoid", "Tanh"))
    return c.outputs([_gru_direction(c, d) for d in range(len(c.directions))])


def _gru_direction(c: Cell, d: int) -> Run:
    f, g = c.activations[2 * d:2 * d + 2]
    wb, rb = c.biases(d)
    recurrent, after, whole = c.weight(2, d), bool(c.n.attrs.get("linear_before_reset", 0)), c.pieces
    bias = wb
    if wb is not None and rb is not None:  # all of the recurrence's bias joins in, but for the part that reset scales
        joined = concat(c.b, [whole.part(rb, 0, 2), full(c.b, (c.hidden,), 0, rb.type)], 0) if after else rb
        bias = whole.add(wb, joined)
    projected = c.projected(d, bias)

    def opened(p: Pieces, gates: Value) -> tuple[Value, Value]:
        """The update and the reset gate."""
        return f(p, p.clipped(p.part(gates, 0))), f(p, p.clipped(p.part(gates, 1)))

    def closed(p: Pieces, x: Value, z: Value, inner: Value, hidden: Value) -> State:
        new = g(p, p.clipped(p.add(p.part(x, 2), inner)))
        return (p.add(p.mul(p.b.op("sub", p.number(1), z), new), p.mul(z, hidden)),)

    def step(p: Pieces, x: Value, state: State, fixed: Sequence[Value]) -> State:
        (hidden,), (to_gates, to_hidden) = state, fixed
        z, r = opened(p, p.add(p.part(x, 0, 2), p.matmul(hidden, to_gates)))
        return closed(p, x, z, p.matmul(p.mul(r, hidden), to_hidden), hidden)

    def step_linear(p: Pieces, x: Value, state: State, fixed: Sequence[Value]) -> State:
        (hidden,), seen = state, p.matmul(state[0], fixed[0])
        z, r = opened(p, p.add(p.part(x, 0, 2), p.part(seen, 0, 2)))
        candidate = p.part(seen, 2) if len(fixed) == 1 else p.add(p.part(seen, 2), fixed[1])
        return closed(p, x, z, p.mul(r, candidate), hidden)
    if after:
        return c.run(d, projected, step_linear, (c.initial(5, d),), [recurrent, *([] if rb is None else [whole.part(rb, 2)])])
    return c.run(d, projected, step, (c.initial(5, d),), [whole.part(recurrent, 0, 2), whole.part(recurrent, 2)])


@from_onnx("RNN")
def _rnn(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    c = Cell(n, b, 1, ("Tanh",))
    runs = []
    for d in range(len(c.directions)):
        wb, rb = c.biases(d)
        projected = c.projected(d, None if wb is None or rb is None else c.pieces.add(wb, rb))

        def step(p: Pieces, x: Value, state: State, fixed: Sequence[Value], f: Activation = c.activations[d]) -> State:
            return (f(p, p.clipped(p.add(x, p.matmul(state[0], fixed[0])))),)
        runs.append(c.run(d, projected, step, (c.initial(5, d),), [c.weight(2, d)]))
    return c.outputs(runs)
