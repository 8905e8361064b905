"""Candidates to object code, in processes of their own: `python -m tilewright.autotune.builder < requests > replies`.

A request says a task and a schedule's steps; the reply holds an object with the function

    void tw_drive(ptr args, ptr ctx, i64 repeats)     // args: inputs, outputs, workspace; runs the kernel `repeats` times

and what its caller must prepare (`Built`). LLVM may need seconds, gigabytes, or crash over a strange schedule: not here.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, cast

from ..backends.llvm.elf import combine
from ..backends.llvm.emit import emit_kernel, parallel_extent, workspace_bytes
from ..backends.llvm.entry import emit_entry
from ..backends.llvm.worker import IRError, compile_object
from ..backends.plan import ARENA_ALIGN, KernelCall, Plan, Slot
from ..backends.target import Target
from ..compiler.threads import seconds, team
from ..errors import ScheduleError, TilewrightError
from ..ir.expr import Call, walk
from ..ir.loops import Pack, Scheduled
from ..ir.program import Program
from ..ir.types import TensorType
from .log import Json, Steps
from .schedules import scheduled
from .task import Task, parse_workload
from .wire import Closed, Header, receive, send

KERNEL, DRIVE = "k", "tw_drive"
MOST_IR = 4 << 20  # characters: ten times the largest kernel that the heuristic makes; LLVM would take a minute
BRIEF = frozenset({"add", "sub", "mul", "max", "min", "neg", "select", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not",
                   "floordiv", "mod"})  # functions of an instruction or two; the code of others depends more on LLVM's passes


@dataclass(frozen=True, slots=True)
class Built:
    """objects: relocatable. workspace: bytes. packs: inputs that the kernel reads laid out. team: threads that take part."""

    objects: tuple[bytes, ...]
    workspace: int
    packs: tuple[Pack, ...]
    team: int = 1

    def header(self) -> Header:
        return {"workspace": self.workspace, "team": self.team,
                "packs": [[p.buffer, list(p.padded), list(p.split), list(p.perm), list(p.shape)] for p in self.packs]}

    @staticmethod
    def of(header: Header, objects: list[bytes]) -> Built:
        packs = tuple(Pack(str(name), *(tuple(x) for x in rest)) for name, *rest in cast("list[list]", header["packs"]))
        return Built(tuple(objects), cast(int, header["workspace"]), packs, cast(int, header["team"]))


def build(task: Task, steps: Steps) -> Built:
    """Raises ScheduleError where the steps are not legal, IRError where LLVM refuses."""
    s = scheduled(task, steps)
    return build_scheduled(task, s)


def build_scheduled(task: Task, s: Scheduled) -> Built:
    """The same for a scheduled program."""
    text = emit_kernel(s, task.target, KERNEL)
    if len(text) > MOST_IR:
        raise ScheduleError(f"the kernel has {len(text) >> 20} MiB of LLVM IR")
    trips = max(1, parallel_extent(s))
    members = team(seconds(task.work, task.target, any(st.compute.reduce_axes for st in s.stages)), trips, task.threads)
    step = -(-workspace_bytes(s) // ARENA_ALIGN) * ARENA_ALIGN
    brief = _microkernels_only(s)
    if members == 1:
        objects = (_compile(text + _drive_alone(len(task.program.inputs) + len(task.program.outputs), trips), task.target, brief),)
    else:
        plan = _plan(task.program, trips, members, step)
        objects = (_compile(text, task.target, brief), _compile(emit_entry(plan) + _drive_team(len(task.program.inputs),
                                                                                         len(task.program.outputs)), task.target))
    return Built(objects, step * members, s.packs, members)


def _microkernels_only(s: Scheduled) -> bool:
    """Whether nearly all the time goes to microkernels, with little around their sums. Of these, LLVM's whole pipeline makes code
    that is as fast as that of a few passes (medians equal, 1% apart at most in nine of ten), in twice the time."""
    return all(st.tensorize is not None and all(n.fn in BRIEF for n in walk(st.compute.body) if isinstance(n, Call)) for st in s.stages)


def _compile(text: str, target: Target, brief: bool = False) -> bytes:
    return compile_object(text, target.triple, target.cpu, target.features, brief)


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
def _task(workload: str, target: str, threads: int) -> Task:
    import json
    return parse_workload(workload, Target.from_json(json.loads(target)), threads)


def main(requests: BinaryIO, replies: BinaryIO) -> None:
    while True:
        try:
            r, _ = receive(requests)
        except Closed:
            return
        try:
            task = _task(cast(str, r["workload"]), cast(str, r["target"]), cast(int, r["threads"]))
            made = build(task, cast("list[Json]", r["steps"]))
            combine(made.objects)  # a damaged object shows here
        except (TilewrightError, IRError) as e:
            send(replies, {"error": f"{type(e).__name__}: {e}"[:1000]})
            continue
        send(replies, made.header(), made.objects)


if __name__ == "__main__":
    from .process import child
    main(*child())
