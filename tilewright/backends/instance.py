"""One compiled graph of concrete shapes: a plan, its code, its prepared weights, and memory for calls in flight."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..ir import ops as _ops  # noqa: F401  (registers every op)
from ..ir.graph import Graph
from . import fastcall
from .fastcall import OUT_OF_RANGE, Record
from .llvm.elf import Image, combine
from .llvm.entry import CTX_ERROR, CTX_FIELDS, CTX_POOL, CTX_ROWS, ENTRY
from .llvm.jit import Library, load_image, require_host
from .llvm.pycall import Block, Frame
from .memory import address, aligned, out_of_memory
from .plan import Plan
from .pool import pool
from .preparation import Preparation
from .target import Target, runs_here

if TYPE_CHECKING:
    from .profile import Profile

_RUN = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 5)


NO_WEIGHTS = Preparation(Graph("prepare", (), (), ()), {})


class _Weights:
    """Prepared arrays and the table of their addresses; exchanged as a whole, so that a call sees one or the other."""

    __slots__ = ("address", "arrays", "record", "table")

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.table = (ctypes.c_void_p * max(1, len(arrays)))(*map(address, arrays))
        self.address = ctypes.addressof(self.table)
        self.record = Record(self.address, id(self))


class _Frame:
    """What one call in flight needs of its own: arena, pointer tables, context. record: for native calls."""

    __slots__ = ("arena", "arena_at", "ctx", "ctx_at", "inputs", "inputs_at", "outputs", "outputs_at", "record")

    def __init__(self, plan: Plan, pool: int) -> None:
        self.arena = aligned(plan.arena_bytes)
        self.inputs = (ctypes.c_void_p * max(1, len(plan.inputs)))()
        self.outputs = (ctypes.c_void_p * max(1, len(plan.outputs)))()
        self.ctx = (ctypes.c_int64 * CTX_FIELDS)()
        self.ctx[CTX_POOL] = pool
        self.arena_at = address(self.arena)
        self.inputs_at, self.outputs_at, self.ctx_at = map(ctypes.addressof, (self.inputs, self.outputs, self.ctx))
        self.record = Record(1, self.inputs_at, self.outputs_at, self.arena_at, self.ctx_at)


def _refusal(target: Target) -> Callable[..., int]:
    """What stands for code that this machine cannot run."""
    def refuse(*_: int) -> int:
        require_host(target)
        raise AssertionError("code for this machine was not loaded")
    return refuse


class Instance:
    """Runs one plan. Any number of threads may run it at once: each call takes a frame of its own, frames are reused."""

    def __init__(self, plan: Plan, code: Sequence[bytes] | Image, target: Target, preparation: Preparation = NO_WEIGHTS,
                 notes: Sequence[str] = (), ir: Callable[[], Sequence[str]] | None = None,
                 threads: int | None = None) -> None:
        """`code`: relocatable objects of the kernels and the entry point, or an Image of them. `notes`: lines for
        `explain`. `ir`: the kernels' IR texts, for export. `threads`: at most so many take part (default: as many as the plan
        has work for). Code for another kind of machine can be exported and saved; `run` raises TargetError."""
        self.plan, self.target, self.notes, self.ir = plan, target, tuple(notes), ir
        self.image = code if isinstance(code, Image) else combine(code)
        self._run: Callable[[int, int, int, int, int], int] = _refusal(target)
        self._library: Library | None = None
        if runs_here(target):
            self._library = load_image(self.image, [ENTRY])
            self._run = _RUN(self._library.address(ENTRY))
        self._pool = pool(min(plan.threads, threads or plan.threads)) if self._library is not None else 0
        self.preparation, prepared = preparation.evaluate()
        self._weights = _Weights(prepared)
        assert [(a.shape, a.dtype) for a in self._weights.arrays] == [(t.shape, t.dtype.numpy) for _, t in plan.weights], "prepared weights"
        self._in_types = tuple((t.shape, t.dtype.numpy) for _, t in plan.inputs)
        self._out_types = tuple((t.shape, t.dtype.numpy) for _, t in plan.outputs)
        self._frames: list[_Frame] = []  # list.append and list.pop are atomic
        self._native = fastcall.code() if self._library is not None else None
        self._frame = _Frame(plan, self._pool) if self._native else None  # native calls take this one alone
        self.block = self._make_block()
        self.profiled: Profile | None = None  # the last profile, for `explain`

    @property
    def weight_arrays(self) -> list[np.ndarray]:
        """The prepared weights, in the order of the plan."""
        return self._weights.arrays

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Fresh outputs for inputs of exactly the plan's types, that `arguments.ready` accepts. Raises InputError where
        an index from data is out of range."""
        try:
            outputs = [np.empty(shape, dtype) for shape, dtype in self.output_types(inputs)]
        except MemoryError:
            raise out_of_memory("outputs", sum(t.bytes for _, t in self.plan.outputs)) from None
        self.run_into(outputs, inputs)
        return outputs

    def run_into(self, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> None:
        """The same into arrays of exactly the plan's types, contiguous, that overlap with nothing."""
        frame = self._take()
        slots = frame.inputs
        for k, x in enumerate(inputs):
            slots[k] = address(x)
        slots = frame.outputs
        for k, y in enumerate(outputs):
            slots[k] = address(y)
        if self.plan.by_rows:
            frame.ctx[CTX_ROWS] = len(inputs[0])
        weights = self._weights  # this reference keeps them alive through the call
        failed = self._run(frame.inputs_at, frame.outputs_at, weights.address, frame.arena_at, frame.ctx_at)
        if failed:
            frame.ctx[CTX_ERROR] = 0
        self._give(frame)
        if failed:
            raise InputError(OUT_OF_RANGE)

    def _make_block(self) -> fastcall.Block | None:
        """What native calls need to know; None where they are not possible."""
        if self._library is None or self._frame is None:
            return None
        owned = self._library, self._frame
        return fastcall.block(self.plan, self._library.address(ENTRY), self._weights.record, self._frame.record, owned)

    def _take(self) -> _Frame:
        """A frame that is nobody else's until it is given back."""
        if self._native and self._frame and self._native.take(self._frame.record.address):
            return self._frame
        try:
            return self._frames.pop()
        except IndexError:
            return _Frame(self.plan, self._pool)

    def _give(self, frame: _Frame) -> None:
        if frame is self._frame:
            frame.record.fields[Frame.FREE] = 1
        else:
            self._frames.append(frame)

    def fits(self, args: Sequence[object]) -> bool:
        """Whether the arguments can be passed to `run` as they are."""
        if len(args) != len(self._in_types):
            return False
        by_rows, rows = self.plan.by_rows is not None, -1
        for x, (shape, dtype) in zip(args, self._in_types, strict=True):
            if type(x) is not np.ndarray or x.dtype != dtype:
                return False
            if x.shape != shape and not (by_rows and x.ndim == len(shape) and x.shape[1:] == shape[1:]):
                return False
            if by_rows and rows not in (-1, len(x)):
                return False
            rows = len(x) if by_rows else -1
            f = x.flags
            if not (f.c_contiguous and f.aligned):
                return False
        return True

    def output_types(self, inputs: Sequence[np.ndarray]) -> tuple[tuple[tuple[int, ...], np.dtype], ...]:
        """Shapes and dtypes of the outputs for inputs of the plan's types."""
        if self.plan.by_rows is None:
            return self._out_types
        return tuple(((len(inputs[0]), *shape[1:]), dtype) for shape, dtype in self._out_types)

    def check_output(self, k: int, y: np.ndarray, inputs: Sequence[np.ndarray]) -> bool:
        """Whether `y` has the type of output `k` for these inputs."""
        shape, dtype = self.output_types(inputs)[k]
        return y.shape == shape and y.dtype.newbyteorder("=") == dtype

    def exchange(self, preparation: Preparation, prepared: list[np.ndarray]) -> None:
        """Calls that begin from now on use these weights; calls in flight finish with the old ones."""
        weights = _Weights(prepared)
        if self.block is not None:
            self.block[Block.WEIGHTS] = weights.record.address
        self.preparation, self._weights = preparation, weights
