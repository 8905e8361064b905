"""Tasks: what is tuned. One task is one distinct program of a model, for one target and number of threads.

    tasks = extract("model.onnx", threads=1)   # extract.py
    tasks[0].workload       # text: the program with canonical names, and which inputs can be laid out beforehand
    tasks[0].hash           # of that text

The text holds no weights and no names of the model, so a model that was renamed or trained again has the same tasks.
Processes that build and run candidates read that text and do without the rest of the compiler, which takes long to import.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..backends.target import Target
from ..compiler.schedule.default import default_schedule
from ..compiler.schedule.source import SITE_HEAD, Wanted, workload_hash
from ..compiler.work import Work, work
from ..errors import ModelError
from ..ir.loops import Scheduled
from ..ir.program import Program, program_text
from ..ir.program_text import parse_program

_PACKABLE = "packable:"


@dataclass(frozen=True)
class Task:
    """workload: the canonical text. program: parsed from it, so its buffers are called b0, b1, …; packable: those of its
    inputs that the caller can lay out beforehand (weights). uses: kernels of the model that are this program. label: what the
    model calls them, for people. final: candidates are built as a model builds them, not as fast as will do to rank them."""

    workload: str
    program: Program = field(compare=False)
    packable: frozenset[str]
    target: Target
    threads: int = 1
    uses: int = 1
    label: str = ""
    final: bool = field(default=False, kw_only=True)

    @cached_property
    def hash(self) -> str:
        return workload_hash(self.workload)

    @cached_property
    def work(self) -> Work:
        return work(self.program)

    @property
    def code_key(self) -> str:
        """What code of the task is kept by: there are two kinds of it."""
        return f"{self.hash} final" if self.final else self.hash

    def default(self) -> Scheduled:
        """The heuristic's schedule: what is to be beaten."""
        return default_schedule(self.program, self.target, self.packable)


def workload_text(p: Program, packable: frozenset[str]) -> str:
    """The program's canonical text, then the positions of the packable inputs: "packable: b1 b2"."""
    names = [f"b{k}" for k, b in enumerate(p.inputs) if b.name in packable]
    return f"{program_text(p, canonical=True)}\n{' '.join([_PACKABLE, *names])}"


def task_of(w: Wanted, target: Target, threads: int) -> Task:
    """The task of a program that the compiler wants scheduled."""
    return replace(parse_workload(workload_text(w.program, w.packable), target, threads), uses=w.uses, label=w.label)


def parse_workload(text: str, target: Target, threads: int = 1) -> Task:
    """The task of a record's text. Raises ModelError where it is damaged."""
    if text.startswith(SITE_HEAD):
        from .site import parse_site
        return parse_site(text, target, threads)
    head, mark, tail = text.rpartition("\n" + _PACKABLE)
    if not mark:
        raise ModelError(f"not a workload: {text[:80]!r}")
    p = parse_program(head)
    packable = frozenset(tail.split())
    if not packable <= {b.name for b in p.inputs}:
        raise ModelError(f"a workload has no inputs {sorted(packable)}")
    return Task(text, p, packable, target, threads)


def model_text(tasks: Sequence[Task]) -> str:
    """What a decision about a whole model is recorded for: its tasks and how often each is used."""
    return "\n".join(["model", *sorted(f"{t.hash} x{t.uses}" for t in tasks)])
