"""Compiled graphs on disk: a second compilation of the same graph skips passes, fusion and schedules.

    key    the graph's text and literals, target, options, the compiler's version: no weights, which a plan does not depend on
    entry  the plan, the preparation graph, notes, and the keys of the kernels' objects, which lie in the same folder

Entries are those of the `ObjectCache`: written whole, checked by a sum, pruned by age. Whatever is wrong with one costs time only.
"""
from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .. import config
from ..backends.cache import ObjectCache, cache_key, compiler_version
from ..backends.instance import Preparation
from ..backends.plan import Plan
from ..backends.target import Target
from ..errors import TilewrightError
from ..ir.graph import Graph
from ..ir.text import INLINE_ELEMENTS, arrays_of, parse_graph, print_graph
from ..ir.types import DTYPES, dtype_of

MOST_BYTES = 32 << 20   # of literals in an entry: beyond, reading them costs as much as computing them
WORTH_SECONDS = 0.05    # of passes, fusion and schedules; below, an entry is not worth its file


@dataclass(frozen=True, slots=True, eq=False)
class StoredPlan:
    """What `build_instance` makes of a graph, but for its weights. objects: the keys of plan's code in the object cache."""

    plan: Plan
    preparation: Graph
    weights: tuple[str, ...]
    notes: tuple[str, ...]
    objects: tuple[str, ...]


def plan_key(graph: Graph, target: Target, *options: object) -> str | None:
    """The entry's name; None where plans are not kept, because every pass is to be seen or verified."""
    settings = config.read()
    if settings.debug or settings.dump:
        return None
    h = hashlib.sha256()
    for k, c in graph.constants.items():
        if not c.updatable and c.array.size > INLINE_ELEMENTS:
            h.update(k.encode() + np.ascontiguousarray(c.array).tobytes())
    text = _without_weights(print_graph(graph))
    return cache_key("plan", compiler_version(), json.dumps(target.to_json()), repr(options), text, h.hexdigest())


def _without_weights(text: str) -> str:
    """The graph's text without the values of weights: `const @w: f32[2] weight = [1.0, 2.0]`."""
    return "\n".join(x.split(" weight = ")[0] if x.startswith("  const ") else x for x in text.split("\n"))


def load_plan(cache: ObjectCache, key: str, graph: Graph) -> tuple[StoredPlan, list[bytes]] | None:
    """The entry and the objects of its code; None where something is missing, damaged, or does not fit `graph`."""
    data = cache.get(key)
    if data is None:
        return None
    try:
        stored = _unpack(data, graph)
    except (TilewrightError, zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, NotImplementedError):
        return None
    objects = [cache.get(k) for k in stored.objects]
    found = [o for o in objects if o is not None]
    return (stored, found) if len(found) == len(objects) else None


def store_plan(cache: ObjectCache, key: str, graph: Graph, stored: StoredPlan) -> None:
    """Keeps the entry if that can be done and is worth it."""
    arrays, known = arrays_of(stored.preparation), {}
    for k, a in list(arrays.items()):
        own = graph.constants.get(k)
        if own is not None and own.array is a:
            known[k] = k  # a literal of the model: it need not be kept twice
            del arrays[k]
    if sum(a.nbytes for a in arrays.values()) <= MOST_BYTES:
        cache.put(key, _pack(stored, arrays, known))


def _pack(s: StoredPlan, arrays: Mapping[str, np.ndarray], known: Mapping[str, str]) -> bytes:
    manifest = {"plan": s.plan.to_json(), "weights": s.weights, "notes": s.notes, "objects": s.objects, "known": known,
                "arrays": [[k, dtype_of(a.dtype).name, list(a.shape)] for k, a in arrays.items()]}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("plan.json", json.dumps(manifest))
        z.writestr("prepare.txt", print_graph(s.preparation))
        for n, a in enumerate(arrays.values()):
            z.writestr(f"a{n}", np.ascontiguousarray(a).tobytes())
    return out.getvalue()


def _unpack(data: bytes, graph: Graph) -> StoredPlan:
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        m = json.loads(z.read("plan.json"))
        arrays = {k: np.frombuffer(z.read(f"a{n}"), DTYPES[d].numpy).reshape(shape) for n, (k, d, shape) in enumerate(m["arrays"])}
        arrays |= {k: graph.constants[k].array for k in m["known"]}
        prep = parse_graph(z.read("prepare.txt").decode(), arrays)
    weights = tuple(map(str, m["weights"]))
    if any(graph.constants[v.name].value != v for v in prep.inputs) or not all(k in graph.constants for k in weights):
        raise ValueError("the preparation does not fit the graph")
    return StoredPlan(Plan.from_json(m["plan"]), prep, weights, tuple(map(str, m["notes"])), tuple(map(str, m["objects"])))


def preparation_of(stored: StoredPlan, graph: Graph, names: Mapping[str, str], literals: frozenset[str]) -> Preparation:
    """The preparation with the weights of `graph`."""
    return Preparation(stored.preparation, {k: graph.constants[k].array for k in stored.weights}, dict(names), literals)
