"""The boundary between data frames and compiled code: the one place where columns are looked up by name and strings become
numbers.

Compiled code takes one block [rows, columns] of f32 or f64. A `Boundary` makes it of a data frame (or an array of objects):

    a numeric column      its numbers
    a column of strings   for each string the number that the model's estimators agreed on (`Codes`), -1 for one that none of
                          them knows; missing strings (None, NaN) have numbers where an estimator asked for them
    other columns         are not read

and it names the classes that results stand for, where they are no numbers.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, cast

import numpy as np

from ..errors import InputError
from ..ir.types import TensorSpec, TensorType
from .arguments import Data
from .executable import Executable, Result
from .frames import Frame, has_nulls, is_frame, names_of, numbers, reader, refuse_lazy
from .instance import Instance
from .target import Target

if TYPE_CHECKING:
    from .profile import Profile

NAN = "nan"  # in a saved file
_MOST_PLACES = 64
_BYTE = 255  # stands for -1


def _is_nan(v: object) -> bool:
    return v is not None and not isinstance(v, str) and bool(v != v)  # noqa: PLR0124


@dataclass(slots=True)
class Codes:
    """The numbers of a column's strings. strict: an unknown string is an error, as it is in the library."""

    name: str
    table: dict[object, int] = field(default_factory=dict)
    missing: int = -1  # the code of NaN
    strict: bool = False

    def code(self, v: object) -> int:
        """The number of v, a new one where it has none yet."""
        if isinstance(v, np.generic):
            v = v.item()
        if _is_nan(v):
            if self.missing < 0:
                self.missing = self._next()
            return self.missing
        return self.table.setdefault(v, self._next())

    def _next(self) -> int:
        return len(self.table) + (self.missing >= 0)

    def encode(self, values: list[object]) -> np.ndarray:
        """The numbers of all values. Raises InputError for unknown ones where these are errors."""
        get = self.table.get
        if len(self.table) < _BYTE:  # lists become arrays faster by way of bytes
            out = np.frombuffer(bytes(list(map(get, values, repeat(_BYTE)))), np.uint8).astype(np.int16)
            out[out == _BYTE] = -1
        else:
            out = np.array(list(map(get, values, repeat(-1))), np.int32)
        if self.missing >= 0 or self.strict:
            unknown = np.flatnonzero(out < 0)
            out[[k for k in unknown if _is_nan(values[k])]] = self.missing
            if self.strict and len(unknown := np.flatnonzero(out < 0)):
                k = int(unknown[0])
                raise InputError(f"column {self.name!r} holds {values[k]!r} in row {k}, which is none of the {len(self.table)} categories "
                                 "that the model was fitted on; fit it with handle_unknown='ignore' or 'use_encoded_value'")
        return out


@dataclass(frozen=True, slots=True)
class Column:
    """position: in the table that the model was fitted on. codes: None for numbers."""

    name: str
    position: int
    codes: Codes | None


@dataclass(frozen=True, slots=True)
class Boundary:
    """columns: what compiled code reads, in order; None where its input is passed on as it is. named: whether frames are read
    by the columns' names. width: of the table that the model was fitted on. labels: of the results' classes."""

    columns: tuple[Column, ...] | None
    named: bool
    width: int
    dtype: np.dtype
    labels: np.ndarray | None = None
    places: dict[tuple[object, ...], list[int]] = field(default_factory=dict, compare=False, repr=False)  # found before, by all names

    def block(self, x: object) -> np.ndarray:
        """[rows, columns] for a data frame or array. Raises InputError."""
        refuse_lazy(x)
        if self.columns is None:
            return np.asarray(x)
        if is_frame(x):
            return self._from_frame(cast(Frame, x), self.columns)
        a = x if isinstance(x, np.ndarray) else np.asarray(x, object)
        if a.ndim != 2 or a.shape[1] != self.width:
            raise InputError(f"the table has shape {list(a.shape)}, expected [rows, {self.width}]")
        out = np.empty((len(a), len(self.columns)), self.dtype)
        for k, c in enumerate(self.columns):
            out[:, k] = c.codes.encode(a[:, c.position].tolist()) if c.codes else numbers(a[:, c.position], c.name)
        return out

    def _from_frame(self, x: Frame, columns: tuple[Column, ...]) -> np.ndarray:
        out = np.empty((len(x), len(columns)), self.dtype)
        read, nulls = reader(x), has_nulls(x)
        for k, (c, at) in enumerate(zip(columns, self._places(x, columns), strict=True)):
            a = read(at)
            if c.codes is not None:
                values: list[object] = np.asarray(a, object).tolist()
                if nulls and None not in c.codes.table:
                    values = [np.nan if v is None else v for v in values]
                out[:, k] = c.codes.encode(values)
            else:
                out[:, k] = a if isinstance(a, np.ndarray) and a.dtype.kind in "fiub" else numbers(a, c.name)
        return out

    def _places(self, x: Frame, columns: tuple[Column, ...]) -> list[int]:
        """Where the columns are in a frame. Raises InputError for those that it lacks."""
        names = tuple(names_of(x))
        found = self.places.get(names)
        if found is None:
            if self.named:
                at = {n: k for k, n in enumerate(names)}
                if missing := [c.name for c in columns if c.name not in at]:
                    raise InputError(f"the data frame has no column {', '.join(map(repr, missing))}")
                if doubled := [c.name for c in columns if names.count(c.name) > 1]:
                    raise InputError(f"the data frame has several columns {', '.join(map(repr, doubled))}")
                found = [at[c.name] for c in columns]
            else:
                if len(names) != self.width:
                    raise InputError(f"the data frame has {len(names)} columns, expected {self.width}")
                found = [c.position for c in columns]
            if len(self.places) >= _MOST_PLACES:
                self.places.clear()
            self.places[names] = found
        return found

    def results(self, y: Result) -> Result:
        """Classes for their numbers."""
        return self.labels[y] if self.labels is not None and isinstance(y, np.ndarray) else y

    def to_json(self) -> dict[str, object]:
        return {"columns": None if self.columns is None else [[c.name, c.position, _codes_json(c.codes)] for c in self.columns],
                "named": self.named, "width": self.width, "dtype": self.dtype.name,
                "labels": None if self.labels is None else [_key_json(v) for v in self.labels.tolist()]}

    @staticmethod
    def from_json(j: Mapping[str, object]) -> Boundary:
        """Raises KeyError, ValueError and TypeError for what `to_json` did not make."""
        columns = cast("list[list[object]] | None", j["columns"])
        labels = cast("list[list[object]] | None", j["labels"])
        made = None if columns is None else tuple(
            Column(str(n), int(cast(int, p)), _codes_from(str(n), cast("dict[str, object] | None", c))) for n, p, c in columns)
        names = None if labels is None else [_key_from(v) for v in labels]
        kind = object if names is None or not all(isinstance(v, str) for v in names) else None
        return Boundary(made, bool(j["named"]), int(cast(int, j["width"])), np.dtype(str(j["dtype"])),
                        None if names is None else np.array(names, kind))


def _key_json(v: object) -> list[object]:
    if v is None or isinstance(v, (str, bool, int, float)):
        return ["none" if v is None else type(v).__name__, v]
    raise InputError(f"a category of type {type(v).__name__} cannot be saved")


def _key_from(j: Sequence[object]) -> object:
    kind, v = j
    return None if kind == "none" else {"str": str, "bool": bool, "int": int, "float": float}[str(kind)](cast(float, v))


def _codes_json(c: Codes | None) -> dict[str, object] | None:
    return None if c is None else {"table": [[_key_json(k), v] for k, v in c.table.items()], NAN: c.missing, "strict": c.strict}


def _codes_from(name: str, j: Mapping[str, object] | None) -> Codes | None:
    if j is None:
        return None
    table = {_key_from(k): int(v) for k, v in cast("list[tuple[list[object], int]]", j["table"])}
    return Codes(name, table, int(cast(int, j[NAN])), bool(j["strict"]))


class TableExecutable(Executable):
    """An executable behind a boundary: its calls take data frames, or arrays of objects, and return named classes."""

    def __init__(self, boundary: Boundary, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], instance: Instance, target: Target,
                 name: str = "model", weights: Mapping[str, TensorType] | None = None, literals: frozenset[str] = frozenset()) -> None:
        super().__init__(inputs, outputs, instance, target, name, weights, literals)
        self.boundary = boundary
        self._rows = Executable(inputs, outputs, instance, target, name, weights, literals)

    def __call__(self, *xs: object, **names: object) -> Result:
        """The result for one table."""
        if names or len(xs) != 1:
            raise InputError(f"{len(xs) + len(names)} inputs were given, expected one table by position")
        return self.boundary.results(self._rows(self.boundary.block(xs[0])))

    def run(self, inputs: Mapping[str, object]) -> dict[str, Data]:
        """Output name -> array, for the table by the input's name."""
        if list(inputs) != [self.inputs[0].name]:
            raise InputError(f"inputs {', '.join(map(repr, inputs))} were given, expected {self.inputs[0].name!r}")
        return {self.outputs[0].name: cast(Data, self(inputs[self.inputs[0].name]))}

    def run_into(self, outputs: np.ndarray | Sequence[np.ndarray], *xs: object) -> None:
        """Writes the result into an existing array."""
        y = self(*xs)
        outs = [outputs] if isinstance(outputs, np.ndarray) else list(outputs)
        if len(outs) != 1 or not isinstance(y, np.ndarray) or (outs[0].shape, outs[0].dtype) != (y.shape, y.dtype):
            raise InputError("the array to write into has not the shape and dtype of the result")
        outs[0][...] = y

    def profile(self, inputs: Mapping[str, object] | Sequence[object], seconds: float = 1.0) -> Profile:
        """As `Executable.profile`, for a table by position or by the input's name."""
        xs = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
        if len(xs) != 1:
            raise InputError(f"{len(xs)} inputs were given, expected one table")
        return self._rows.profile([self.boundary.block(xs[0])], seconds)
