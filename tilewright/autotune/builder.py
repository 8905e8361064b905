"""Candidates to object code, in processes of their own: `python -m tilewright.autotune.builder < requests > replies`.

A request says a task and a schedule's steps; the reply holds an object with the function

    void tw_drive(ptr args, ptr ctx, i64 repeats)     // args: inputs, outputs, workspace; runs the kernel `repeats` times

and what its caller must prepare (`Built`). LLVM may need seconds, gigabytes, or crash over a strange schedule: not here.
"""
from __future__ import annotations

import gc
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import BinaryIO, cast

from ..backends.llvm.elf import combine
from ..backends.llvm.emit import emit_kernel, parallel_extent, workspace_bytes
from ..backends.llvm.entry import emit_entry
from ..backends.llvm.worker import IRError, compile_object
from ..backends.plan import KernelCall, Plan, Slot, align_up
from ..backends.target import Target
from ..compiler.threads import seconds, team
from ..errors import ScheduleError, TilewrightError
from ..ir.loops import Scheduled
from ..ir.program import Program
from ..ir.types import TensorType
from .built import DRIVE, Built
from .log import Json, Steps
from .schedules import scheduled
from .task import Task, parse_workload
from .wire import Closed, receive, send

KERNEL = "k"
MOST_IR = 4 << 20  # characters: ten times the largest kernel that the heuristic makes; LLVM would take a minute
MOST_PARTS = 256  # objects with microkernels that are kept, some 15 kB each


class Parts:
    """Microkernels in object code, for all candidates that share them: they are most of the code, and most of them come again. Those
    that a candidate brought are one object, because LLVM takes milliseconds for any."""

    def __init__(self) -> None:
        self._objects: OrderedDict[int, bytes] = OrderedDict()
        self._where: dict[str, int] = {}
        self._used: list[str] = []
        self._new: tuple[Sequence[str], str] = (), ""
        self._number = itertools.count()

    def begin(self) -> None:
        """The next kernel."""
        self._used, self._new = [], ((), "")

    def use(self, symbol: str) -> bool:
        self._used.append(symbol)
        return symbol in self._where

    def add(self, symbols: Sequence[str], text: str) -> None:
        self._new = symbols, text

    def objects(self, target: Target) -> tuple[bytes, ...]:
        """With the microkernels that the present kernel calls. Raises IRError."""
        symbols, text = self._new
        if symbols:
            number = next(self._number)
            self._objects[number] = _compile(text, target)
            self._where |= dict.fromkeys(symbols, number)
        found = dict.fromkeys(self._where[s] for s in self._used)
        for number in found:
            self._objects.move_to_end(number)
        made = tuple(self._objects[n] for n in found)
        while len(self._objects) > MOST_PARTS:
            gone, _ = self._objects.popitem(last=False)
            self._where = {s: n for s, n in self._where.items() if n != gone}
        return made

    @property
    def size(self) -> int:
        """Characters of LLVM IR that are new."""
        return len(self._new[1])


def build(task: Task, steps: Steps, parts: Parts | None = None) -> Built:
    """parts: what earlier candidates left. Raises ScheduleError where the steps are not legal, IRError where LLVM refuses."""
    return build_scheduled(task, scheduled(task, steps), parts)


def build_scheduled(task: Task, s: Scheduled, parts: Parts | None = None) -> Built:
    """The same for a scheduled program."""
    parts = parts or Parts()
    parts.begin()
    text = emit_kernel(s, task.target, KERNEL, None if task.final else parts)
    if (size := len(text) + parts.size) > MOST_IR:
        raise ScheduleError(f"the kernel has {size >> 20} MiB of LLVM IR")
    micro = parts.objects(task.target)
    trips = max(1, parallel_extent(s))
    members = team(seconds(task.work, task.target, any(st.compute.reduce_axes for st in s.stages)), trips, task.threads)
    step = align_up(workspace_bytes(s))
    ins, outs = len(task.program.inputs), len(task.program.outputs)
    if members > 1:
        entry = emit_entry(_plan(task.program, trips, members, step)) + _drive_team(ins, outs)
        objects = (_compile(text, task.target, not task.final), _compile(entry, task.target))
    elif task.final:
        drive = _declaration(ins + outs) + _drive_alone(ins + outs, trips)
        objects = (_compile(text, task.target, brief=False), _compile(drive, task.target))
    else:
        objects = (_compile(text + _drive_alone(ins + outs, trips), task.target),)
    return Built((*objects, *micro), step * members, s.packs, members)


def _compile(text: str, target: Target, brief: bool = True) -> bytes:
    """brief: by two of LLVM's passes: the order of candidates is the same as after more of them, as far as timing can tell (rank
    correlation 0.86 to 0.99 beside 0.89 to 0.99 between two measurements of the same code; medians within 3%), in less than half the
    time. Code generation is as ever: without loop strength reduction or with fast instruction selection the order is another.
    Finalists are compiled as a model's kernels are: alone, with their microkernels, by all passes."""
    return compile_object(text, target.triple, target.cpu, target.features, brief)


def _declaration(args: int) -> str:
    """Of the kernel, for a driver that is compiled apart from it."""
    return f"declare void @{KERNEL}({', '.join(['ptr'] * (args + 1))}, i64, i64, ptr)\n"


def _drive_alone(args: int, trips: int) -> str:
    """One thread: calls of the kernel itself."""
    names = ", ".join(f"ptr %a{k}" for k in range(args + 1))
    return _drive([_element(k) for k in range(args + 1)], f"call void @{KERNEL}({names}, i64 0, i64 {trips}, ptr %ctx) noinline")


def _drive_team(ins: int, outs: int) -> str:
    """Several: calls of the plan's entry point, which wakes the pool."""
    return _drive([f"  %outs = getelementptr ptr, ptr %args, i64 {ins}", _element(ins + outs)],
                  f"%r = call i32 @tw_run(ptr %args, ptr %outs, ptr null, ptr %a{ins + outs}, ptr %ctx) noinline")


def _element(k: int) -> str:
    return f"  %p{k} = getelementptr ptr, ptr %args, i64 {k}\n  %a{k} = load ptr, ptr %p{k}"


def _drive(head: list[str], call: str) -> str:
    return "\n".join(["", f"define void @{DRIVE}(ptr %args, ptr %ctx, i64 %repeats) nounwind {{", "start:", *head, "  br label %again",
                      "again:", "  %n = phi i64 [ 0, %start ], [ %m, %again ]", "  " + call, "  %m = add i64 %n, 1",
                      "  %more = icmp ult i64 %m, %repeats", "  br i1 %more, label %again, label %end", "end:", "  ret void", "}", ""])


def _plan(p: Program, trips: int, members: int, step: int) -> Plan:
    """A plan of this one kernel."""
    slots = [Slot("input", k) for k in range(len(p.inputs))] + [Slot("output", k) for k in range(len(p.outputs))]
    call = KernelCall(KERNEL, tuple(slots), trips, Slot("arena") if step else None, team=members, workspace_step=step)
    return Plan(tuple((b.name, TensorType(b.dtype, b.shape)) for b in p.inputs),
                tuple((b.name, TensorType(b.dtype, b.shape)) for b in p.outputs), (), step * members, (call,), (0,))


# -- the process -------------------------------------------------------------------------------------------------------
@cache
def _task(workload: str, target: str, threads: int, final: bool) -> Task:
    import json
    return replace(parse_workload(workload, Target.from_json(json.loads(target)), threads), final=final)


def main(requests: BinaryIO, replies: BinaryIO) -> None:
    """A kernel under construction is a hundred thousand objects that all go at once: they are collected between requests, and not
    searched for again and again meanwhile, which took a third of the time."""
    parts = Parts()
    gc.freeze()
    gc.disable()
    while True:
        try:
            r, _ = receive(requests)
        except Closed:
            return
        try:
            task = _task(cast(str, r["workload"]), cast(str, r["target"]), cast(int, r["threads"]), r["final"] is True)
            made = build(task, cast("list[Json]", r["steps"]), parts)
            combine(made.objects)  # a damaged object shows here
        except (TilewrightError, IRError) as e:
            send(replies, {"error": f"{type(e).__name__}: {e}"[:1000]})
        else:
            send(replies, made.header(), made.objects)
        gc.collect()


if __name__ == "__main__":
    from .process import child
    main(*child())
