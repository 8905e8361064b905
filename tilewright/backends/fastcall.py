"""Calls of an executable that go from CPython straight to machine code (`llvm/pycall.py`): the library that does it, the
type of objects that it is the call of, and the tables it reads.

All of this leans on the layout of CPython's and NumPy's objects, which is fixed by their binary interfaces, and which is
probed here nevertheless. Where anything differs, on interpreters other than CPython, on builds without a GIL, and under
TILEWRIGHT_SLOW_CALLS=1, `code()` is None and calls go through Python and ctypes.
"""
from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TypeVar, cast

import numpy as np

from .. import config
from ..errors import InputError, TargetError
from .cache import ObjectCache
from .llvm import pycall
from .llvm.jit import Job, Library, build, load
from .once import once
from .plan import Plan
from .target import Target

OUT_OF_RANGE = ("an index computed from the inputs' values is out of range for the tensor it selects from (of a table: a category that an "
                "encoder with handle_unknown='error' was not fitted on, or a row without a neighbour in the radius)")
_MESSAGE = OUT_OF_RANGE.encode()
_LONG_NS = 20_000  # of a run: from here on letting other threads have the interpreter is worth its 50 ns
_SLOT_CALL, _SLOT_NEW, _SLOT_METHODS, _SLOT_MEMBERS = 50, 65, 64, 72  # of CPython's typeslots.h
_DEFAULT_BASETYPE_VECTORCALL = 1 << 10 | 1 << 11
_FASTCALL_KEYWORDS = 0x80 | 0x02
_PYSSIZET, _OBJECT_EX, _READONLY = 19, 16, 1
_NUMPY_ARRAY_TYPE, _NUMPY_NEW_FROM_DESCR = 2, 94  # positions in NumPy's C API
T = TypeVar("T")


class Block(np.ndarray):
    """The record of one Instance (`pycall.Block`) as an array of i64; `owned` is what the addresses in it point into."""

    owned: tuple[object, ...]


class Record:
    """Fields of 8 bytes at an address that does not change."""

    __slots__ = ("address", "fields")

    def __init__(self, *values: int) -> None:
        self.fields = (ctypes.c_int64 * len(values))(*values)
        self.address = ctypes.addressof(self.fields)


class Code:
    """The loaded entry points. take(address of a frame's record): whether the frame was free and is now the caller's."""

    def __init__(self, library: Library, new_array: int) -> None:
        self._library = library
        table = {
            pycall.Api.NDARRAY: id(np.ndarray), pycall.Api.LIST: id(list), pycall.Api.TUPLE: id(tuple), pycall.Api.NONE: id(None),
            pycall.Api.ERROR: id(InputError), pycall.Api.MESSAGE: ctypes.cast(ctypes.c_char_p(_MESSAGE), ctypes.c_void_p).value or 0,
            pycall.Api.PyArray_NewFromDescr: new_array}
        for a in pycall.Api:
            if a.name.startswith("Py") and a not in table:
                table[a] = _python(a.name)
        self._api = (ctypes.c_void_p * len(pycall.Api)).from_address(library.address(pycall.API))
        for a, address in table.items():
            self._api[a] = address
        self.take: Callable[[int], int] = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(library.address(pycall.TAKE))

    def class_of(self, base: type[T], call: Callable[..., object], run_into: Callable[..., object]) -> type[T]:
        """A subclass of `base` whose calls and method `run_into` are native; `call` and `run_into` do what these leave. It has
        an attribute `_block`, unset at first: the Block of what a call runs. One class for each process."""
        self._slow = call, run_into  # kept alive: the table does not count as a reference
        self._api[pycall.Api.CALL_SLOWLY], self._api[pycall.Api.RUN_INTO_SLOWLY] = id(call), id(run_into)
        native = self._base(run_into.__doc__ or "")
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        return cast("type[T]", type(base.__name__, (native, base), names))

    def _base(self, doc: str) -> type:
        """The type that says where the vectorcallfunc is, in C terms:
        PyType_FromSpec({.basicsize, .flags = HAVE_VECTORCALL, .slots = {tp_call = PyVectorcall_Call, tp_new, members, methods}})"""
        text = doc.encode()
        members = (_Member * 3)(_Member(b"__vectorcalloffset__", _PYSSIZET, pycall.SELF_CALL, _READONLY, None),
                                _Member(b"_block", _OBJECT_EX, pycall.SELF_BLOCK, 0, None))
        methods = (_Method * 2)(_Method(b"run_into", self._library.address(pycall.RUN_INTO), _FASTCALL_KEYWORDS, text))
        slots = (_Slot * 5)(_Slot(_SLOT_CALL, _python("PyVectorcall_Call")), _Slot(_SLOT_NEW, self._library.address(pycall.NEW)),
                            _Slot(_SLOT_MEMBERS, ctypes.addressof(members)), _Slot(_SLOT_METHODS, ctypes.addressof(methods)))
        spec = _Spec(b"tilewright.NativeCallable", pycall.SELF_SIZE, 0, _DEFAULT_BASETYPE_VECTORCALL, ctypes.addressof(slots))
        self._kept = text, members, methods, slots, spec  # the type points to its methods' definitions
        make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(("PyType_FromSpec", ctypes.pythonapi))
        return make(ctypes.addressof(spec))


@once
def code() -> Code | None:
    """The entry points, None where calls have to be slow."""
    if config.read().slow_calls or not layouts_are_known():
        return None
    new_array = _array_function()
    if new_array is None:
        return None
    target = Target.host()
    try:
        objects = build([Job.of("pycall", pycall.emit_pycall())], target, ObjectCache.default(), 1)
        return Code(load(objects, pycall.SYMBOLS, target), new_array)
    except (TargetError, AttributeError):  # code cannot be loaded; a function that this CPython lacks
        return None


def block(plan: Plan, run: int, weights: Record, frame: Record, owned: Sequence[object]) -> Block | None:
    """What native calls of the plan need. `run`: address of its entry point. weights, frame: `pycall.Weights`, `pycall.Frame`.
    `owned`: what must live as long as calls may run."""
    if code() is None or (plan.by_rows and len(plan.inputs) != 1):
        return None
    types = [t for _, t in (*plan.inputs, *plan.outputs)]
    dims = [Record(*((-1, *t.shape[1:]) if plan.by_rows else t.shape)) for t in types]
    descrs = [t.dtype.numpy for t in types]
    tensors = Record(*(v for t, d, n in zip(types, descrs, dims, strict=True) for v in (id(d), len(t.shape), n.address, t.bytes)))
    made = np.zeros(len(pycall.Block), np.int64).view(Block)
    made[pycall.Block.RUN], made[pycall.Block.WEIGHTS], made[pycall.Block.FRAME] = run, weights.address, frame.address
    made[pycall.Block.RELEASE] = plan.by_rows.release if plan.by_rows else 0 if estimated_ns(plan) >= _LONG_NS else 1
    made[pycall.Block.BY_ROWS] = plan.by_rows is not None
    made[pycall.Block.N_INPUTS], made[pycall.Block.N_OUTPUTS] = len(plan.inputs), len(plan.outputs)
    made[pycall.Block.INPUTS] = tensors.address
    made[pycall.Block.OUTPUTS] = tensors.address + 8 * len(pycall.Tensor) * len(plan.inputs)
    made.owned = (*owned, frame, dims, descrs, tensors)
    return made


def estimated_ns(plan: Plan) -> float:
    """A guess, on the long side, at what one run takes. Calls whose time does not follow from their sizes are taken for long ones."""
    return sum(n * (_LONG_NS if not c.bytes else 20 + max(c.flops / 10, c.bytes / 8))
               for c, n in zip(plan.calls, plan.times, strict=True))


# -- what the code counts on ---------------------------------------------------------------------------------------------
def layouts_are_known() -> bool:
    """Whether objects of this interpreter and of this NumPy look as `pycall` says."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8 or object.__basicsize__ != pycall.HEADER \
            or "t" in getattr(sys, "abiflags", "t"):
        return False
    frozen = np.zeros(3, np.int8)
    frozen.flags.writeable = False
    probes = (np.zeros((2, 3), np.float32), np.zeros((4, 5, 6))[1:, ::2], np.zeros(()), np.zeros((0, 2), np.int64), frozen,
              np.zeros(9, np.uint8)[1:].view(np.float32), np.zeros((3, 2)).T)
    return np.ndarray.__basicsize__ >= pycall.FLAGS + 4 and all(_array_is_known(a) for a in probes)


def _array_is_known(a: np.ndarray) -> bool:
    at = id(a)
    f = a.flags
    flags = f.c_contiguous * 1 | f.f_contiguous * 2 | f.owndata * 4 | f.aligned * 0x100 | f.writeable * 0x400
    if ctypes.c_int32.from_address(at + pycall.ND).value != a.ndim or _word(at + pycall.TYPE) != id(np.ndarray):
        return False
    dims = _word(at + pycall.DIMENSIONS)
    return (_word(at + pycall.DATA) == a.ctypes.data and _word(at + pycall.DESCR) == id(a.dtype)
            and ctypes.c_int32.from_address(at + pycall.FLAGS).value & 0x507 == flags
            and all(_word(dims + 8 * k) == n for k, n in enumerate(a.shape)))


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def _python(name: str) -> int:
    """Address of a function of CPython's C API. Raises AttributeError."""
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


def _array_function() -> int | None:
    """Address of PyArray_NewFromDescr, None where NumPy's C API is not the known one."""
    try:
        core = import_module("numpy._core._multiarray_umath" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core._multiarray_umath")
        capsule = core._ARRAY_API
    except (ImportError, AttributeError, ValueError):
        return None
    open_capsule = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
    table = open_capsule(capsule, None)
    version = ctypes.PYFUNCTYPE(ctypes.c_uint32)(_word(table))()  # PyArray_GetNDArrayCVersion
    if version >> 24 not in (1, 2) or _word(table + 8 * _NUMPY_ARRAY_TYPE) != id(np.ndarray):
        return None
    return _word(table + 8 * _NUMPY_NEW_FROM_DESCR)


class _Member(ctypes.Structure):
    """PyMemberDef"""

    _fields_ = [("name", ctypes.c_char_p), ("type", ctypes.c_int), ("offset", ctypes.c_ssize_t), ("flags", ctypes.c_int),
                ("doc", ctypes.c_char_p)]


class _Method(ctypes.Structure):
    """PyMethodDef"""

    _fields_ = [("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


class _Slot(ctypes.Structure):
    """PyType_Slot"""

    _fields_ = [("slot", ctypes.c_int), ("value", ctypes.c_void_p)]


class _Spec(ctypes.Structure):
    """PyType_Spec"""

    _fields_ = [("name", ctypes.c_char_p), ("size", ctypes.c_int), ("item_size", ctypes.c_int), ("flags", ctypes.c_uint),
                ("slots", ctypes.c_void_p)]
