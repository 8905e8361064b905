"""The compiled model as its user sees it."""
from __future__ import annotations

import difflib
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from ..errors import InputError
from ..ir.types import TensorSpec, TensorType, dtype_of
from . import fastcall
from .arguments import Data, Spec, by_name, check_shape, convert, ready, tensor
from .instance import Instance, Preparation
from .mapped import MappedFile
from .once import once
from .report import Report, explain
from .target import Target

if TYPE_CHECKING:
    from .profile import Profile

Result = Data | tuple[Data, ...]
_MOST_SPECIALISATIONS = 128  # of one model, for different shapes; then the oldest is dropped


class Runnable(Protocol):
    """A model compiled for arguments of certain types and static values. `run` may be called by many threads at once."""

    @property
    def direct(self) -> Instance | None:
        """The Instance whose `run` this one's `run` is, where there is no more to it."""
        ...

    def run(self, data: Sequence[Data]) -> list[Data]:
        """Results in the order of the executable's outputs, for arguments in the order of its inputs."""
        ...


class Model(Protocol):
    """What makes new Runnables: the compiler, or `Fixed`.

    adopt: set by the executable; the model calls it with each new Instance before that is used. It may come from a thread
    that runs the model: what follows a segment is compiled when it is first reached."""

    adopt: Callable[[Instance], None]

    @property
    def static_inputs(self) -> frozenset[str]:
        """The inputs by whose values a Runnable is special. May grow as the model is compiled."""
        ...

    def specialise(self, data: Sequence[Data]) -> Runnable:
        """Compiles for arguments like these. Called under a lock."""
        ...

    def source(self) -> tuple[bytes | MappedFile, Mapping[str, str | int | bool]] | None:
        """The model itself and the options of its compilation, for models that `save` cannot store as code."""
        ...


class Fixed:
    """A Model (and Runnable) of concrete shapes: one Instance, whose inputs and outputs are the executable's."""

    static_inputs: frozenset[str] = frozenset()

    def __init__(self, instance: Instance) -> None:
        self.direct = instance
        self.adopt: Callable[[Instance], None] = lambda _: None

    def specialise(self, data: Sequence[Data]) -> Runnable:
        return self

    def source(self) -> None:
        return None

    def run(self, data: Sequence[Data]) -> list[Data]:
        return list(self.direct.run(cast("Sequence[np.ndarray]", data)))


class Executable:
    """A compiled model. Calls are re-entrant; inputs are never modified; outputs are fresh arrays.

    inputs, outputs: TensorSpecs (name, shape, NumPy dtype). Symbolic dimensions are strings: the model is compiled for
    each combination of sizes when it is first called with it.
    """

    def __init__(self, inputs: Sequence[Spec], outputs: Sequence[Spec], model: Model | Instance, target: Target, name: str = "model",
                 weights: Mapping[str, TensorType] | None = None, literals: frozenset[str] = frozenset()) -> None:
        """weights: the model's updatable constants. literals: names of constants that are part of the code. Both are
        completed by those that the compiled instances know."""
        self.inputs, self.outputs, self.target, self.name = tuple(inputs), tuple(outputs), target, name
        self._model: Model = Fixed(model) if isinstance(model, Instance) else model
        self._weights, self._literals = dict(weights or {}), literals
        self._updated: dict[str, np.ndarray] = {}
        self._made: dict[Hashable, Runnable] = {}
        self._lock = threading.RLock()
        self._instances: list[weakref.ref[Instance]] = []
        self._latest: Instance | None = None  # changes together with _block
        self._switch = threading.Lock()
        this = weakref.ref(self)  # no cycle: a dropped executable frees its memory at once

        def adopt(instance: Instance) -> None:
            if exe := this():
                exe._adopt(instance)
        self._model.adopt = adopt
        if isinstance(self._model, Fixed):
            self._made[self._key(())] = self._model
            self._dispatch_to(self._model.direct)
            self._adopt(self._model.direct)

    def __new__(cls, *_: object, **__: object) -> Executable:
        """Where native calls are possible, of a subclass: its `__call__` and `run_into` are machine code, and call those below
        with whatever they do not take themselves. `_block` says what they run."""
        made = _native_class()
        return made.__new__(made) if cls is Executable and made is not Executable else super().__new__(cls)

    def __repr__(self) -> str:
        ins, outs = (", ".join(map(repr, x)) for x in (self.inputs, self.outputs))
        return f"<Executable {self.name} ({ins}) -> ({outs}) for {self.target}>"

    # -- calling -----------------------------------------------------------------------------------------------------
    def __call__(self, *xs: object, **names: object) -> Result:
        """The outputs for positional inputs: one array, or a tuple where the model has several outputs.

        Takes NumPy arrays of exactly the inputs' dtypes, tensors of other libraries (DLPack), and Python numbers and
        lists. Raises InputError before any native code runs where number, dtype or shape do not fit."""
        if names:
            raise InputError(f"inputs are passed by position, got the keyword {next(iter(names))!r}; by name: exe.run({{name: array}})")
        latest = self._latest
        if latest is not None and latest.fits(xs):
            results: list[Data] = latest.run(xs)  # pyright: ignore
        else:
            data = convert(self.inputs, xs)
            results = self._runnable(data).run(data)
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, object]) -> dict[str, Data]:
        """Output name -> array, for inputs by name."""
        data = convert(self.inputs, by_name(self.inputs, dict(inputs)))
        return {o.name: r for o, r in zip(self.outputs, self._runnable(data).run(data), strict=True)}

    def run_into(self, outputs: np.ndarray | Sequence[np.ndarray], *xs: object) -> None:
        """Writes the outputs into existing arrays of their exact shape and dtype, without allocating where they are
        contiguous and share no memory with inputs or each other."""
        outs = [outputs] if isinstance(outputs, np.ndarray) else list(outputs)
        if len(outs) != len(self.outputs):
            raise InputError(f"{len(outs)} output arrays were given, expected {len(self.outputs)}")
        for y, o in zip(outs, self.outputs, strict=True):
            if not isinstance(y, np.ndarray) or not y.flags.writeable:
                raise InputError(f"output {o.name!r} must be a writeable NumPy array, got {type(y).__name__}")
        latest = self._latest
        if latest is not None and latest.fits(xs):
            data, runnable = list(cast("tuple[np.ndarray, ...]", xs)), None
        else:
            data = convert(self.inputs, xs)
            runnable = self._runnable(data)
            latest = runnable.direct
        if latest is None:
            assert runnable is not None
            self._copy_out(outs, runnable.run(data))
            return
        arrays = cast("list[np.ndarray]", data)
        for k, y in enumerate(outs):
            if not latest.check_output(k, y, arrays):
                shape, dtype = latest.output_types(arrays)[k]
                raise InputError(f"output {latest.plan.outputs[k][0]!r} must be {dtype}{list(shape)}, got {y.dtype}{list(y.shape)}")
        if all(ready(y) is y for y in outs) and not _overlap(outs, arrays):
            latest.run_into(outs, arrays)
        else:
            self._copy_out(outs, list(latest.run(arrays)))

    def _copy_out(self, outs: Sequence[np.ndarray], results: Sequence[Data]) -> None:
        for y, r, o in zip(outs, results, self.outputs, strict=True):
            if not isinstance(r, np.ndarray) or (r.shape, r.dtype) != (y.shape, y.dtype.newbyteorder("=")):
                got = f"{r.dtype}{list(r.shape)}" if isinstance(r, np.ndarray) else "not a tensor"
                raise InputError(f"output {o.name!r} is {got}, the array to write into is {y.dtype}{list(y.shape)}")
        for y, r in zip(outs, results, strict=True):
            y[...] = cast(np.ndarray, r)

    def _key(self, data: Sequence[Data]) -> Hashable:
        if isinstance(self._model, Fixed):
            return None
        static = self._model.static_inputs
        return static, tuple(_data_key(x, s.name in static) for s, x in zip(self.inputs, data, strict=True))

    def _runnable(self, data: Sequence[Data]) -> Runnable:
        found = self._made.get(self._key(data))
        if found is None:
            with self._lock:
                found = self._made.get(self._key(data)) or self._specialise(data)
        if found.direct is not self._latest and found.direct is not None and not self._model.static_inputs:
            self._dispatch_to(found.direct)
        return found

    def _dispatch_to(self, instance: Instance) -> None:
        """Calls try this instance first from now on."""
        with self._switch:
            self._latest = instance
            if instance.block is not None:
                self._block = instance.block

    def _specialise(self, data: Sequence[Data]) -> Runnable:
        made = self._model.specialise(data)
        while len(self._made) >= _MOST_SPECIALISATIONS:
            del self._made[next(iter(self._made))]
        self._made[self._key(data)] = made  # the key is made anew: static inputs may have been found
        return made

    def _adopt(self, instance: Instance) -> None:
        """From now on the instance has this executable's weights, and follows their updates."""
        with self._lock:
            if self._updated:
                instance.exchange(*instance.preparation.updated(self._updated).evaluate())
            self._instances = [r for r in self._instances if r() is not None] + [weakref.ref(instance)]

    # -- weights -----------------------------------------------------------------------------------------------------
    def update_weights(self, weights: Mapping[str, object]) -> None:
        """Exchanges weights by their names in the model; nothing is compiled. All or none are exchanged; calls in flight
        finish with the old ones. Raises InputError for unknown names, other shapes or dtypes, and for constants whose
        values have become part of the code."""
        with self._lock:
            instances = list(self.instances())
            known = dict(self._weights)
            literals = set(self._literals)
            for i in instances:
                known |= _weight_types(i.preparation)
                literals |= i.preparation.literals
            new = {k: _checked_weight(k, v, known, literals) for k, v in weights.items()}
            prepared = [(i, i.preparation.updated(new).evaluate()) for i in instances]
            for i, found in prepared:
                i.exchange(*found)
            self._updated |= new

    def instances(self) -> tuple[Instance, ...]:
        """Everything compiled so far, in order."""
        return tuple(i for r in self._instances if (i := r()) is not None)

    # -- looking at it, keeping it -----------------------------------------------------------------------------------
    def explain(self) -> Report:
        """What the compiler did, as text (`print`) or HTML (`.to_html(path)`)."""
        return explain(self.name, self.inputs, self.outputs, self.target, self.instances())

    def profile(self, inputs: Mapping[str, object] | Sequence[object], seconds: float = 1.0) -> Profile:
        """Time, GFLOP/s, bytes and share of a core's peak of each step, measured for about `seconds` on one thread; `print`
        it, or read its `calls`. `explain` shows it from then on. `inputs`: by name, or in order.

        Raises InputError where the model runs in several parts, TargetError where the code is for another machine."""
        from .profile import profile
        named = inputs if isinstance(inputs, Mapping) else None
        data = convert(self.inputs, by_name(self.inputs, dict(named)) if named is not None else list(cast("Sequence[object]", inputs)))
        direct = self._runnable(data).direct
        if direct is None:
            raise InputError(f"{self.name} runs in several parts, because shapes in it depend on data; profile serves models of one part")
        direct.profiled = profile(direct, cast("list[np.ndarray]", data), seconds)
        return direct.profiled

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.twx` file that `tilewright.load` reads. The file appears whole or not at all. It holds machine code
        for this target (models with symbolic shapes: the model), so load only files that you trust."""
        from .saved import save
        save(self, Path(path), self._model.source())

    def export(self, path: str | os.PathLike[str], header: bool = True) -> None:
        """Writes the model for use without Python: `.o`, `.a` or `.so`, and with `header` a C header beside it;
        `.ll` or `.s` to read. Raises InputError where the model has no single compiled form."""
        from .llvm.export import export
        export(self.single("export"), self.name, Path(path), header)

    def single(self, purpose: str) -> Instance:
        """The only instance. Raises InputError where shapes are symbolic or the model was compiled in several parts."""
        if not isinstance(self._model, Fixed):
            made = list(self._made.values())
            if len(made) != 1 or made[0].direct is None:
                raise InputError(f"{purpose} needs one concrete shape for each input of {self.name} (compile with inputs= of these "
                                 "shapes), and shapes inside that do not depend on data")
            return made[0].direct
        return self._model.direct


@once
def _native_class() -> type[Executable]:
    code = fastcall.code()
    return Executable if code is None else code.class_of(Executable, Executable.__call__, Executable.run_into)


def _data_key(x: Data, static: bool) -> Hashable:
    if isinstance(x, np.ndarray):
        return (x.dtype.str, x.shape, x.tobytes() if static else None)
    return None if x is None else tuple(_data_key(e, static) for e in x)


def _overlap(outs: Sequence[np.ndarray], ins: Sequence[np.ndarray]) -> bool:
    return any(np.may_share_memory(y, x) for k, y in enumerate(outs) for x in (*ins, *outs[:k]))


def _weight_types(p: Preparation) -> dict[str, TensorType]:
    models = {graph: model for model, graph in p.names.items()}
    return {models.get(k, k): TensorType(dtype_of(a.dtype), a.shape) for k, a in p.arrays.items()}


def _checked_weight(name: str, value: object, known: Mapping[str, TensorType], literals: set[str]) -> np.ndarray:
    want = known.get(name)
    if want is None:
        if name in literals:
            raise InputError(f"constant {name!r} cannot be updated: its value is part of the compiled code; compile the changed model")
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the model has {len(known)} weights"
        raise InputError(f"there is no weight {name!r}; {hint}")
    spec = TensorSpec(name, want.shape, want.dtype.numpy)
    a = tensor(spec, value, "weight")
    check_shape(spec, a.shape, {}, "weight")
    return a.copy()

