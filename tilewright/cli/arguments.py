"""From the text of options to values: shapes, input files, random inputs. What cannot be read is bad usage (exit code 2)."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import typer

from ..backends.arguments import Spec
from ..compiler.frontends.source import OptionalSpec
from ..errors import UnsupportedError
from ..ir.types import UNKNOWN_RANK, Dim, TensorSpec

Shapes = dict[str, tuple[int, ...]]


def parse_shapes(texts: Iterable[str]) -> Shapes:
    """`--shape x=1,3,224,224` for each input: {"x": (1, 3, 224, 224)}; "x=" is a scalar."""
    found: Shapes = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        try:
            if not (name and equals):
                raise ValueError
            shape = tuple(int(d) for d in dims.split(",")) if dims.strip() else ()
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not NAME=DIM,DIM,… such as x=1,3,224,224", param_hint="--shape") from None
        if any(d < 0 for d in shape):
            raise typer.BadParameter(f"{text!r} has a negative dimension", param_hint="--shape")
        found[name] = shape
    return found


def parse_inputs(texts: Iterable[str]) -> dict[str, np.ndarray]:
    """`--input x=x.npy`: {"x": the array in x.npy}. Pickled objects are refused."""
    found: dict[str, np.ndarray] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise typer.BadParameter(f"{text!r} is not NAME=FILE.npy", param_hint="--input")
        if not Path(file).is_file():
            raise typer.BadParameter(f"file {file!r} for input {name!r} does not exist", param_hint="--input")
        try:
            array = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as e:
            raise typer.BadParameter(f"{file!r} is not a NumPy array file (.npy): {e}", param_hint="--input") from None
        if not isinstance(array, np.ndarray):
            raise typer.BadParameter(f"{file!r} holds several arrays; save each as .npy", param_hint="--input")
        found[name] = array
    return found


def gather(specs: Sequence[Spec], given: Mapping[str, np.ndarray], shapes: Shapes, seed: int | None) -> dict[str, np.ndarray]:
    """One array for each input of a model: from `given`, the others at random from `seed` with the spec's or `shapes`' dimensions."""
    check_names(specs, given, "--input")
    check_names(specs, shapes, "--shape")
    if lists := [s.name for s in specs if not isinstance(s, TensorSpec | OptionalSpec)]:
        raise UnsupportedError(f"input {lists[0]!r} is a list of tensors, which the command line cannot pass; call the model from Python")
    missing = [s for s in specs if s.name not in given and isinstance(s, TensorSpec)]
    if missing and seed is None:
        raise typer.BadParameter(f"no value for {', '.join(map(str, missing))}; give each as NAME=FILE.npy, or pass --random SEED",
                                 param_hint="--input")
    rng = np.random.default_rng(seed)
    found = dict(given) | {s.name: random_array(rng, s.dtype, concrete(s, shapes)) for s in missing}
    return {s.name: found[s.name] for s in specs if s.name in found}


def check_names(specs: Sequence[Spec], found: Iterable[str], option: str) -> None:
    """Bad usage where `found` names an input that the model does not have."""
    names = [s.name for s in specs]
    for name in found:
        if name not in names:
            raise typer.BadParameter(f"the model has no input {name!r}; it has {', '.join(names) or 'none'}", param_hint=option)


def concrete(spec: TensorSpec, shapes: Shapes) -> tuple[int, ...]:
    """The spec's shape with the symbolic dimensions taken from `shapes`."""
    if spec.name in shapes and spec.shape == UNKNOWN_RANK:
        return shapes[spec.name]
    shape: tuple[Dim, ...] = shapes.get(spec.name, spec.shape)
    if len(shape) != len(spec.shape) or any(isinstance(d, int) and d != n for d, n in zip(spec.shape, shape, strict=True)):
        raise typer.BadParameter(f"{spec.name}={','.join(map(str, shape))} does not fit the model's {spec}", param_hint="--shape")
    if free := [str(d) for d in shape if not isinstance(d, int)]:
        raise typer.BadParameter(f"input {spec} has free dimensions ({', '.join(free)}); fix them with --shape {spec.name}="
                                 + ",".join(str(d) if isinstance(d, int) else "N" for d in shape), param_hint="--shape")
    return tuple(d for d in shape if isinstance(d, int))


def random_array(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal floats; integers 0 and 1, which are valid indices nearly everywhere; all 256 values for 8 bits."""
    if dtype.kind in "iub":
        limits = np.iinfo(dtype) if dtype.itemsize == 1 and dtype.kind != "b" else None
        low, high = (limits.min, limits.max + 1) if limits else (0, 2)
        return rng.integers(low, high, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)  # bfloat16's kind is "V": everything else is a float


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """"1,2": (1, 2); all of them at least 1."""
    try:
        found = tuple(dict.fromkeys(int(x) for x in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,2", param_hint=option)
    return found


def parse_peers(text: str) -> tuple[str, ...]:
    """"onnxruntime,openvino", or "all": names of engines beside tilewright; "" or "none": no others."""
    from ..bench.engines import PEERS
    found = PEERS if text == "all" else () if text in ("", "none") else tuple(dict.fromkeys(text.split(",")))
    if unknown := [p for p in found if p not in PEERS]:
        raise typer.BadParameter(f"there is no peer {unknown[0]!r}; there are {', '.join(PEERS)}", param_hint="--peers")
    return found
