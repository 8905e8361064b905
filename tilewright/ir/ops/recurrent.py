"""LSTM, GRU and RNN: the input projection of all steps is one matmul, the steps are unrolled into graph nodes."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ..builder import GraphBuilder
from ..graph import Value
from ..op import OnnxNode, from_onnx
from .shape import full, reshape, transpose
from .slices import concat, slice_axis

Activation = Callable[[Value], Value]
_DEFAULTS = {"affine": (1.0, 0.0), "leakyrelu": (0.01, None), "thresholdedrelu": (1.0, None), "scaledtanh": (1.0, 1.0),
             "hardsigmoid": (0.2, 0.5), "elu": (1.0, None)}
_PLAIN = {"relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "softsign": "softsign", "softplus": "softplus"}
_PARAMETERS = {"leakyrelu": "leaky_relu", "thresholdedrelu": "thresholded_relu", "hardsigmoid": "hard_sigmoid", "elu": "elu"}


class Cell:
    """What all steps of one recurrent node share: the builder, sizes, clipping and activations.

    X is [steps, batch, input] here whatever the node's layout; H is the hidden size.
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

    # -- small graph pieces --------------------------------------------------------------------------------------------
    def number(self, v: float) -> Value:
        return self.b.constant(np.asarray(v, self.x.type.dtype.numpy))

    def add(self, a: Value, c: Value) -> Value:
        return self.b.op("add", a, c)

    def mul(self, a: Value, c: Value) -> Value:
        return self.b.op("mul", a, c)

    def clipped(self, v: Value) -> Value:
        """v limited to [-clip, clip], as the spec does before each activation."""
        if self.clip is None:
            return v
        return self.b.op("min", self.b.op("max", v, self.number(-self.clip)), self.number(self.clip))

    def part(self, v: Value, k: int) -> Value:
        """The k-th of the gates that lie side by side in v's last dimension."""
        return slice_axis(self.b, v, v.type.rank - 1, k * self.hidden, self.hidden)

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
        b, key = self.b, name.lower()
        if key in _PLAIN:
            return lambda v: b.op(_PLAIN[key], v)
        if key in _PARAMETERS:
            attrs = {"alpha": alpha} | ({} if beta is None else {"beta": beta})
            return lambda v: b.op(_PARAMETERS[key], v, **attrs)
        if alpha is None or beta is None:
            raise UnsupportedError(f"{self.n.op_type} {self.n.name!r}: activation {name!r} is not supported")
        if key == "affine":
            return lambda v: self.add(self.mul(self.number(alpha), v), self.number(beta))
        return lambda v: self.mul(self.number(alpha), b.op("tanh", self.mul(self.number(beta), v)))

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
        """X @ W of all steps, plus bias: [steps * batch, gates * H]."""
        flat = reshape(self.b, self.x, (self.steps * self.batch, self.x.type.shape[2]))
        y = self.b.op("matmul", flat, self.weight(1, d))
        return y if bias is None else self.add(y, bias)

    # -- the time loop -------------------------------------------------------------------------------------------------
    def run(self, d: int, projected: Value, step: Callable[[Value, tuple[Value, ...]], tuple[Value, ...]],
            state: tuple[Value, ...]) -> tuple[list[Value], tuple[Value, ...]]:
        """Unrolls `step(projection of one step [batch, gates * H], state) -> state`. Returns the hidden states (state[0])
        of all steps in time order and the last state. Beyond an entry's length its state stays and its output is 0."""
        order = range(self.steps)
        outs: dict[int, Value] = {}
        for t in reversed(order) if self.directions[d] else order:
            new = step(slice_axis(self.b, projected, 0, t * self.batch, self.batch), state)
            if self.lengths is None:
                outs[t] = new[0]
            else:
                at = self.b.constant(np.asarray(t, self.lengths.type.dtype.numpy))
                live = reshape(self.b, self.b.op("lt", at, self.lengths), (self.batch, 1))
                outs[t] = self.b.op("where", live, new[0], self.number(0))
                new = tuple(self.b.op("where", live, a, old) for a, old in zip(new, state, strict=True))
            state = new
        return [outs[t] for t in order], state

    def outputs(self, runs: list[tuple[list[Value], tuple[Value, ...]]]) -> list[Value]:
        """Y, Y_h (and Y_c) in the node's layout, from each direction's outputs."""
        b, (s, m, h, d) = self.b, (self.steps, self.batch, self.hidden, len(runs))
        per = [reshape(b, concat(b, outs, 0), (s, 1, m, h)) if s else full(b, (0, 1, m, h), 0, self.x.type) for outs, _ in runs]
        y = concat(b, per, 1)
        states = [concat(b, [reshape(b, last[k], (1, m, h)) for _, last in runs], 0) for k in range(len(runs[0][1]))]
        if self.batch_first:
            y, states = transpose(b, y, (2, 0, 1, 3)), [transpose(b, v, (1, 0, 2)) for v in states]
        assert y.type.shape in ((s, d, m, h), (m, s, d, h))
        return [y, *states]


@from_onnx("LSTM")
def _lstm(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    c = Cell(n, b, 4, ("Sigmoid", "Tanh", "Tanh"))
    return c.outputs([_lstm_direction(c, d) for d in range(len(c.directions))])


@dataclass(frozen=True)
class Peepholes:
    """What the input, output and forget gates see of the cell state, [H] each."""

    i: Value
    o: Value
    f: Value


def _lstm_direction(c: Cell, d: int) -> tuple[list[Value], tuple[Value, ...]]:
    f, g, h = c.activations[3 * d:3 * d + 3]
    wb, rb = c.biases(d)
    projected = c.projected(d, None if wb is None or rb is None else c.add(wb, rb))
    recurrent, peep = c.weight(2, d), c.one(7, d)
    p = None if peep is None else Peepholes(*(c.part(peep, k) for k in range(3)))
    coupled = bool(c.n.attrs.get("input_forget", 0))

    def step(x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
        hidden, cell = state
        gates = c.add(x, c.b.op("matmul", hidden, recurrent))

        def gate(k: int, sees: Value | None, old: Value) -> Value:
            v = c.part(gates, k)
            return f(c.clipped(v if sees is None else c.add(v, c.mul(sees, old))))
        i = gate(0, p and p.i, cell)
        forget = c.b.op("sub", c.number(1), i) if coupled else gate(2, p and p.f, cell)
        new = c.add(c.mul(forget, cell), c.mul(i, g(c.clipped(c.part(gates, 3)))))
        return c.mul(gate(1, p and p.o, new), h(new)), new
    return c.run(d, projected, step, (c.initial(5, d), c.initial(6, d)))


@from_onnx("GRU")
def _gru(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    c = Cell(n, b, 3, ("Sigmoid", "Tanh"))
    return c.outputs([_gru_direction(c, d) for d in range(len(c.directions))])


def _gru_direction(c: Cell, d: int) -> tuple[list[Value], tuple[Value, ...]]:
    f, g = c.activations[2 * d:2 * d + 2]
    wb, rb = c.biases(d)
    recurrent, after = c.weight(2, d), bool(c.n.attrs.get("linear_before_reset", 0))
    bias = wb
    if wb is not None and rb is not None:  # all of the recurrence's bias joins in, but for the part that reset scales
        joined = concat(c.b, [slice_axis(c.b, rb, 0, 0, 2 * c.hidden), full(c.b, (c.hidden,), 0, rb.type)], 0) if after else rb
        bias = c.add(wb, joined)
    projected = c.projected(d, bias)
    to_gates, to_hidden = slice_axis(c.b, recurrent, 1, 0, 2 * c.hidden), c.part(recurrent, 2)
    late = None if rb is None else c.part(rb, 2)

    def step(x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
        (hidden,) = state
        if after:
            seen = c.b.op("matmul", hidden, recurrent)
            gates = c.add(slice_axis(c.b, x, 1, 0, 2 * c.hidden), slice_axis(c.b, seen, 1, 0, 2 * c.hidden))
        else:
            gates = c.add(slice_axis(c.b, x, 1, 0, 2 * c.hidden), c.b.op("matmul", hidden, to_gates))
        z, r = f(c.clipped(c.part(gates, 0))), f(c.clipped(c.part(gates, 1)))
        if after:
            candidate = c.part(seen, 2) if late is None else c.add(c.part(seen, 2), late)
            inner = c.mul(r, candidate)
        else:
            inner = c.b.op("matmul", c.mul(r, hidden), to_hidden)
        new = g(c.clipped(c.add(c.part(x, 2), inner)))
        return (c.add(c.mul(c.b.op("sub", c.number(1), z), new), c.mul(z, hidden)),)
    return c.run(d, projected, step, (c.initial(5, d),))


@from_onnx("RNN")
def _rnn(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    c = Cell(n, b, 1, ("Tanh",))
    runs = []
    for d in range(len(c.directions)):
        wb, rb = c.biases(d)
        recurrent, f = c.weight(2, d), c.activations[d]
        projected = c.projected(d, None if wb is None or rb is None else c.add(wb, rb))

        def step(x: Value, state: tuple[Value, ...], f: Activation = f, recurrent: Value = recurrent) -> tuple[Value, ...]:
            return (f(c.clipped(c.add(x, c.b.op("matmul", state[0], recurrent)))),)
        runs.append(c.run(d, projected, step, (c.initial(5, d),)))
    return c.outputs(runs)
