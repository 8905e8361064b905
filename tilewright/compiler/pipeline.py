"""Runs graph passes: pure functions Graph -> Graph, verified, timed, snapshotted, and named when they go wrong."""
from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import Config, read
from ..errors import InputError, TilewrightError, VerifyError
from ..ir.graph import Graph
from ..ir.text import save_graph
from ..ir.verify import verify


@dataclass(frozen=True, slots=True)
class Pass:
    """A named rewrite. `run` must not change its argument; what it requires and ensures stands in its docstring."""

    name: str
    run: Callable[[Graph], Graph]


@dataclass(slots=True)
class Trace:
    """What the passes did, in order: for `explain()` and debugging."""

    entries: list[tuple[str, float, int, int]] = field(default_factory=list)  # (pass, seconds, nodes before, nodes after)

    def __str__(self) -> str:
        return "\n".join(f"{s * 1e3:8.2f} ms  {a:5d} -> {b:5d} nodes  {name}" for name, s, a, b in self.entries)


def run(graph: Graph, passes: Iterable[Pass], config: Config | None = None, trace: Trace | None = None) -> Graph:
    """`graph` after all `passes`. Verifies between them under debug. Raises VerifyError, naming the pass, where one
    breaks the graph; a pass that crashes has its name added to the exception as a note."""
    config = config or read()
    trace = trace if trace is not None else Trace()
    snapshots = Snapshots(config.dump, graph.name) if config.dump else None
    if config.verify:
        verify(graph)
    _report(config, 4, f"before all passes:\n{graph}")
    if snapshots:
        snapshots.write("import", graph)
    for p in passes:
        graph = _step(p, graph, config, trace)
        if snapshots:
            snapshots.write(p.name, graph)
    _report(config, 2, f"passes of {graph.name}:\n{trace}")
    if config.debug == 4:
        _report(config, 4, f"after all passes:\n{graph}")
    return graph


def run_inside(graph: Graph, passes: Iterable[Pass]) -> Graph:
    """The same for a part of a graph, without snapshots or reports: these are of the whole."""
    config = read()
    return run(graph, passes, replace(config, dump=None, debug=min(config.debug, 1)))


def _step(p: Pass, graph: Graph, config: Config, trace: Trace) -> Graph:
    start = time.perf_counter()
    try:
        after = p.run(graph)
    except TilewrightError:
        raise
    except Exception as e:  # re-raised: only the name is added
        e.add_note(f"while pass {p.name} ran on graph {graph.name}")
        raise
    trace.entries.append((p.name, time.perf_counter() - start, len(graph.nodes), len(after.nodes)))
    if config.verify:
        _verify_after(p, graph, after)
    if config.debug >= 5:
        _report(config, 5, f"after {p.name}:\n{after}")
    elif config.debug >= 3 and len(graph.nodes) != len(after.nodes):
        _report(config, 3, f"{p.name}: {len(graph.nodes)} -> {len(after.nodes)} nodes")
    return after


def _verify_after(p: Pass, before: Graph, after: Graph) -> None:
    try:
        verify(after)
    except VerifyError as e:
        raise VerifyError(f"pass {p.name} broke the graph: {e}") from e
    if after.inputs != before.inputs or tuple(v.type for v in after.outputs) != tuple(v.type for v in before.outputs):
        raise VerifyError(f"pass {p.name} broke the graph: it changed the signature of {before.name}")


def _report(config: Config, level: int, text: str) -> None:
    if config.debug >= level:
        print(f"[tilewright] {text}", file=sys.stderr)


class Snapshots:
    """Numbered files in one folder per graph: `003-fold_batch_norm.twg` (+ `.npz` for literals), `weights.npz` once."""

    def __init__(self, root: Path, name: str):
        self.folder = root / (re.sub(r"[^\w.-]", "_", name) or "graph")
        self.count = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in (*self.folder.glob("[0-9][0-9][0-9]-*"), self.folder / "weights.npz"):
                old.unlink(missing_ok=True)
        except OSError as e:
            raise InputError(f"TILEWRIGHT_DUMP={root} cannot be written: {e}") from e

    def write(self, name: str, graph: Graph) -> Path:
        path = self.folder / f"{self.count:03d}-{name}.twg"
        try:
            save_graph(graph, path, self.folder / "weights.npz")
        except OSError as e:
            raise InputError(f"TILEWRIGHT_DUMP: the snapshot {path} cannot be written: {e}") from e
        self.count += 1
        return path
