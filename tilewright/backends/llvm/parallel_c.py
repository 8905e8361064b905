"""Exported code on the threads of its caller: a pool, as the entry point knows them, made of a function of the caller's.

    int m_run_parallel(p0, …, workspace, threads, parallel_for, context) {
      pool = {m_phases, parallel_for, context, threads};
      ctx.pool = parallel_for && threads > 1 ? &pool : NULL;
      … as m_run
    }
    int m_phases(pool, share, phases, inputs, outputs, weights, arena, ctx) {        // what tw_run calls
      pool->job = {share, inputs, outputs, weights, arena, ctx};
      for (pool->phase = 0; pool->phase < phases; pool->phase++)
        pool->parallel_for(pool->context, min(m_widths[pool->phase], pool->threads), m_task, pool);
      return 1;
    }
    void m_task(pool, i) { pool->share(pool->inputs, …, pool->ctx, pool->phase, i, pool->threads, NULL, 0); }     // fixed shares

A phase ends when `parallel_for` returns, so its tasks may run one after the other: any pool will do.
"""
from __future__ import annotations

from collections.abc import Sequence

from ..plan import Plan
from .entry import CTX_POOL, PHASE

_TABLES = ("inputs", "outputs", "weights", "arena", "ctx")
_FIELDS = ("run", "parallel_for", "context", "threads", "share", *_TABLES, "phase")  # 8 bytes each


def widths(plan: Plan) -> list[int]:
    """How many threads have something to do in each phase."""
    if plan.by_rows:
        return [plan.by_rows.team]
    ends = (*plan.phases[1:], len(plan.calls))
    return [max(c.team for c in plan.calls[a:b]) for a, b in zip(plan.phases, ends, strict=True)]


def parallel_functions(plan: Plan, prefix: str) -> str:
    """IR of `m_phases` and `m_task`."""
    found = widths(plan)
    tables = ", ".join(f"ptr %{t}" for t in _TABLES)
    stores = "\n".join(f"{_at(f, 'at')}\n  store ptr %{f}, ptr %{f}_at" for f in ("share", *_TABLES))
    loads = "\n".join(_load(f, "i64" if f in ("phase", "threads") else "ptr") for f in ("share", *_TABLES, "phase", "threads"))
    return f"""
@{prefix}_widths = internal constant [{len(found)} x i64] [{', '.join(f'i64 {n}' for n in found)}]

define internal void @{prefix}_task(ptr %pool, i32 %i) nounwind {{
{loads}
  %me = zext i32 %i to i64
  call void %share({tables}, i64 %phase, i64 %me, i64 %threads, ptr null, i32 0)
  ret void
}}

define internal i32 @{prefix}_phases(ptr %pool, ptr %share, i64 %phases, {tables}) nounwind {{
entry:
{stores}
{_load("parallel_for", "ptr")}
{_load("context", "ptr")}
{_load("threads", "i64")}
{_at("phase", "at")}
  br label %next
next:
  %p = phi i64 [ 0, %entry ], [ %p1, %next ]
  store i64 %p, ptr %phase_at
  %which = call {{ i64, i64 }} @{PHASE}(i64 %p)
  %index = extractvalue {{ i64, i64 }} %which, 0
  %width_at = getelementptr i64, ptr @{prefix}_widths, i64 %index
  %width = load i64, ptr %width_at
  %fewer = icmp ult i64 %threads, %width
  %n = select i1 %fewer, i64 %threads, i64 %width
  %count = trunc i64 %n to i32
  call void %parallel_for(ptr %context, i32 %count, ptr @{prefix}_task, ptr %pool)
  %p1 = add i64 %p, 1
  %more = icmp ult i64 %p1, %phases
  br i1 %more, label %next, label %end
end:
  ret i32 1
}}
"""


def pool_of_caller(prefix: str) -> tuple[str, Sequence[str]]:
    """The parameters of `m_run_parallel` after the workspace, and its code that stores the pool into %ctx."""
    values = (("run", f"ptr @{prefix}_phases"), ("parallel_for", "ptr %parallel_for"), ("context", "ptr %context"),
              ("threads", "i64 %wide"))
    return ", i32 %threads, ptr %parallel_for, ptr %context", [
        f"  %pool = alloca [{len(_FIELDS)} x i64], align 8", "  %wide = sext i32 %threads to i64",
        *(f"{_at(f, 'at')}\n  store {v}, ptr %{f}_at" for f, v in values),
        "  %none = icmp eq ptr %parallel_for, null", "  %few = icmp slt i32 %threads, 2", "  %alone = or i1 %none, %few",
        "  %chosen = select i1 %alone, ptr null, ptr %pool", f"  %chosen_at = getelementptr ptr, ptr %ctx, i64 {CTX_POOL}",
        "  store ptr %chosen, ptr %chosen_at"]


def parallel_header(prefix: str, parameters: Sequence[str]) -> str:
    """The declarations for C."""
    more = ", ".join([*parameters, "void *workspace", "int threads", f"{prefix}_parallel_for parallel_for", "void *context"])
    return f"""
/* The same on threads of the caller's. parallel_for(context, n, task, argument) must call task(argument, i) once for every
 * i from 0 to n - 1, at once or in any order, and return when all calls have returned; n is at most `threads`. The results
 * are the same bits for every number of threads. With parallel_for NULL or threads below 2 it is {prefix}_run. */
typedef void (*{prefix}_parallel_for)(void *context, int n, void (*task)(void *argument, int i), void *argument);
int {prefix}_run_parallel({more});
"""


def _at(field: str, suffix: str) -> str:
    return f"  %{field}_{suffix} = getelementptr i64, ptr %pool, i64 {_FIELDS.index(field)}"


def _load(field: str, kind: str) -> str:
    return f"{_at(field, 'at')}\n  %{field} = load {kind}, ptr %{field}_at"
