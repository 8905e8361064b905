"""What `run` says about a model's outputs, and how it stores them."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..compiler.frontends.source import Data


def flatten(results: Mapping[str, Data]) -> dict[str, np.ndarray]:
    """Outputs by name; the elements of a list are named "name[0]", "name[1]", …, absent outputs are left out."""
    return {name: a for key, data in results.items() for name, a in _leaves(key, data)}


def _leaves(name: str, data: Data) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(data, np.ndarray):
        yield name, data
    elif data is not None:
        for k, element in enumerate(data):
            yield from _leaves(f"{name}[{k}]", element)


def describe(name: str, array: np.ndarray) -> tuple[str, str, str, str, str, str]:
    """(name, type, least, greatest, mean, number of NaNs) of an array, as text; NaNs are left out of the first three."""
    kind = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    values = array.astype(np.float64).ravel()
    nan = np.isnan(values)
    values = values[~nan]
    if not values.size:
        return name, kind, "-", "-", "-", str(int(nan.sum()))
    with np.errstate(invalid="ignore"):  # inf - inf in a mean is a NaN to print, nothing to warn of
        return name, kind, f"{values.min():.6g}", f"{values.max():.6g}", f"{values.mean():.6g}", str(int(nan.sum()))


def save(results: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes each array to `folder`/NAME.npy; characters that file names do not carry become "_"."""
    folder.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    for k, (name, array) in enumerate(results.items()):
        stem = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "output"
        stem = f"{stem}_{k}" if stem in used else stem
        used.add(stem)
        np.save(folder / f"{stem}.npy", array)
