"""The `.twx` file: a compiled model on disk.

A zip archive (never pickle) of `manifest.json` and, for concrete shapes, `code.o` (all kernels and the entry point),
`prepare.txt` (the preparation graph) and `a0.npy`, `a1.npy`, … (its arrays, named by the manifest); for models with
symbolic shapes `model.bin` instead, compiled again on load. Archives carry checksums of their members.
"""
from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from .. import config
from ..errors import InputError, ModelError, TargetError, TilewrightError
from ..ir.text import arrays_of, parse_graph, print_graph
from ..ir.types import DTYPES, TensorSpec, TensorType, dtype_of
from ..version import __version__
from .files import write_whole
from .instance import Instance, Preparation
from .llvm.elf import ElfError, combine, relocatable
from .llvm.entry import ENTRY
from .llvm.jit import require_host
from .mapped import MappedFile, check, release
from .plan import Plan, type_from_json, type_json
from .target import Target

if TYPE_CHECKING:
    from .executable import Executable

T = TypeVar("T")
FORMAT = 2  # also stands for the entry point's signature and its context
Options = Mapping[str, str | int | bool]
Recompile = Callable[[bytes, Options], "Executable"]


def save(exe: Executable, path: Path, source: tuple[bytes | MappedFile, Options] | None) -> None:
    """Raises InputError where the file cannot be written."""
    def write(f: BinaryIO) -> None:
        with zipfile.ZipFile(f, "w", allowZip64=True) as z:
            _write(z, exe, source)
    write_whole(path, write)


def _write(z: zipfile.ZipFile, exe: Executable, source: tuple[bytes | MappedFile, Options] | None) -> None:
    manifest: dict[str, object] = {"format": FORMAT, "tilewright": __version__, "name": exe.name}
    if source is not None:
        manifest |= {"kind": "model", "options": dict(source[1])}
        check([source[0]] if isinstance(source[0], MappedFile) else [])
        with z.open("model.bin", "w", force_zip64=True) as f:
            f.write(source[0])
    else:
        i = exe.single("save")
        p = i.preparation
        check(p.arrays.values())
        arrays = {f"weight {k}": a for k, a in p.arrays.items()} | {f"literal {k}": a for k, a in arrays_of(p.graph).items()}
        specs = [[[s.name, list(s.shape), dtype_of(s.dtype).name] for s in group if isinstance(s, TensorSpec)]
                 for group in (exe.inputs, exe.outputs)]
        manifest |= {
            "kind": "code", "target": i.target.to_json(), "inputs": specs[0], "outputs": specs[1], "plan": i.plan.to_json(),
            "notes": list(i.notes), "names": dict(p.names), "literals": sorted(p.literals),
            "arrays": {k: type_json(TensorType(dtype_of(a.dtype), a.shape)) for k, a in arrays.items()}}
        if (boundary := getattr(exe, "boundary", None)) is not None:
            manifest["boundary"] = boundary.to_json()
        with z.open("code.o", "w", force_zip64=True) as f:
            f.writelines(relocatable(i.image, [ENTRY, *i.plan.symbols]))  # the kernels too: for export and explain
        z.writestr("prepare.txt", print_graph(p.graph))
        for k, a in enumerate(arrays.values()):
            with z.open(f"a{k}.npy", "w", force_zip64=True) as f:
                np.lib.format.write_array(f, np.ascontiguousarray(a).view(_plain(a.dtype)), allow_pickle=False)
            release(a)
    z.writestr("manifest.json", json.dumps(manifest))


def _plain(dtype: np.dtype) -> np.dtype:
    """The dtype under which an array is stored: .npy files do not know bf16."""
    return np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype


def load(path: Path, recompile: Recompile | None = None) -> Executable:
    """`recompile` compiles saved models with symbolic shapes. Raises ModelError for files that are no saved models,
    TargetError where the code is for another kind of machine."""
    from .executable import Executable
    from .tables import Boundary, TableExecutable
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {e.strerror or e}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            manifest = json.loads(z.read("manifest.json"))
            version = _field(manifest, "format", int)
            if version != FORMAT:
                raise ModelError(f"{path} has format {version}, this is tilewright {__version__} with format {FORMAT}; "
                                 "save the model again with this version")
            if _field(manifest, "kind", str) == "model":
                if recompile is None:
                    raise InputError(f"{path} holds a model with symbolic shapes, which has to be compiled: use tilewright.load")
                return recompile(z.read("model.bin"), _field(manifest, "options", dict))
            instance, name = _instance(z, manifest), _field(manifest, "name", str)
            inputs, outputs = _specs(manifest, "inputs"), _specs(manifest, "outputs")
            boundary = Boundary.from_json(_field(manifest, "boundary", dict)) if "boundary" in manifest else None
    except (ModelError, TargetError, InputError):
        raise
    except (TilewrightError, ElfError, zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, KeyError, ValueError, TypeError, RecursionError,
            NotImplementedError, RuntimeError) as e:
        raise ModelError(f"{path} is no saved model, or damaged: {e}") from None
    first = 1 if instance.plan.by_rows else 0  # of the dimensions that are the same in every call
    types = [(s.shape[first:], np.dtype(s.dtype)) for s in (*inputs, *outputs)]
    if types != [(t.shape[first:], t.dtype.numpy) for _, t in (*instance.plan.inputs, *instance.plan.outputs)] or any(
            isinstance(d, str) for shape, _ in types for d in shape):
        raise ModelError(f"{path} is damaged: its plan does not fit its inputs and outputs")
    if boundary is not None:
        return TableExecutable(boundary, inputs, outputs, instance, instance.target, name)
    return Executable(inputs, outputs, instance, instance.target, name)


def _instance(z: zipfile.ZipFile, manifest: dict[str, object]) -> Instance:
    target = Target.from_json(_field(manifest, "target", dict))
    require_host(target)
    plan = Plan.from_json(_field(manifest, "plan", dict))
    types = {k: type_from_json(t) for k, t in _field(manifest, "arrays", dict).items()}
    arrays = {k: _array(z, n, t) for n, (k, t) in enumerate(types.items())}
    graph = parse_graph(z.read("prepare.txt").decode(), {k[8:]: a for k, a in arrays.items() if k.startswith("literal ")})
    weights = {k[7:]: a for k, a in arrays.items() if k.startswith("weight ")}
    if [v.type for v in graph.outputs] != [t for _, t in plan.weights] or any(
            v.name not in weights or v.type != types[f"weight {v.name}"] for v in graph.inputs):
        raise ValueError("the preparation does not fit the plan")
    names = {_str(k): _str(v) for k, v in _field(manifest, "names", dict).items()}
    preparation = Preparation(graph, weights, names, frozenset(_str(x) for x in _field(manifest, "literals", list)))
    image = combine([z.read("code.o")])
    if missing := [s for s in (ENTRY, *plan.symbols) if s not in image.symbols]:
        raise ValueError(f"the code lacks {', '.join(missing)}")
    threads = config.read().threads or Target.host().cores  # the model may come from a larger machine
    return Instance(plan, image, target, preparation, [_str(x) for x in _field(manifest, "notes", list)], threads=threads)


def _array(z: zipfile.ZipFile, number: int, t: TensorType) -> np.ndarray:
    with z.open(f"a{number}.npy") as f:
        a = np.lib.format.read_array(f, allow_pickle=False)
    if a.shape != t.shape or a.dtype != _plain(t.dtype.numpy):
        raise ValueError(f"array {number} is {a.dtype}{a.shape}, not {t}")
    return a.view(t.dtype.numpy)


def _specs(manifest: dict[str, object], key: str) -> list[TensorSpec]:
    try:
        return [TensorSpec(_str(n), tuple(map(_dimension, shape)), DTYPES[t].numpy) for n, shape, t in _field(manifest, key, list)]
    except (KeyError, ValueError, TypeError) as e:
        raise ModelError(f"the saved model's {key} are damaged: {e}") from None


def _dimension(d: object) -> int | str:
    if type(d) is not int and type(d) is not str:
        raise ValueError(f"{d!r} is no dimension")
    return d


def _str(x: object) -> str:
    if not isinstance(x, str):
        raise ValueError(f"{x!r} is not a string")
    return x


def _field(manifest: object, key: str, kind: type[T]) -> T:
    x = manifest.get(key) if isinstance(manifest, dict) else None
    if type(x) is not kind:
        raise ValueError(f"{key} is missing from the manifest")
    return x
