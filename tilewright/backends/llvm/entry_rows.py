"""The entry point of a plan by rows: any number of rows, in blocks.

    i32 tw_run(ptr inputs, ptr outputs, ptr weights, ptr arena, ptr ctx) {
      if (ctx->rows > block && ctx->pool && ctx->pool->run(ctx->pool, tw_share, 1, …)) return ctx->error != 0;
      tw_span(…, 0, ctx->rows);
      return ctx->error != 0;
    }
    void tw_span(…, i64 begin, i64 end) {                      // rows
      for (at = begin; at + block <= end; at += block) tw_block(inputs + at, outputs + at, …);
      if (end - at >= turn) { scratch inputs = the rows left and zeros; tw_block(…); the rows left = scratch outputs; }
      else for (; at < end; at++) tw_row(inputs + at, outputs + at, …);
    }
    void tw_share(…, i64 phase, i64 me, i64 threads, …);       // whole blocks for thread `me`, in an arena of its own, part by part
"""
from __future__ import annotations

from collections.abc import Sequence

from ..plan import MOST_PIECES, ByRows, KernelCall, NamedType, Plan
from .entry import ARGS, CTX_POOL, CTX_ROWS, PHASE, SHARE, SHARE_ARGS, Calls
from .stealing import TAKE, emit_take, sequence

_PASSED = "ptr %inputs, ptr %outputs, ptr %weights, ptr %arena, ptr %ctx"


def rows_functions(plan: Plan, r: ByRows, symbol: str) -> list[str]:
    return ["declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)", "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
            "declare i64 @llvm.umin.i64(i64, i64)",
            *_body(plan, "tw_block", plan.calls), *_body(plan, "tw_row", r.calls), *_span(plan, r), *_share(r), *_run(r, symbol)]


def _body(plan: Plan, name: str, calls: Sequence[KernelCall]) -> list[str]:
    code = Calls(plan)
    for c in calls:
        code.call(c)
    return ["", f"define internal void @{name}({ARGS}) noinline nounwind {{", *code.lines, "  ret void", "}"]


def _row_bytes(t: NamedType) -> int:
    return t[1].bytes // t[1].shape[0]


def _tables(plan: Plan, code: list[str], at: str, tag: str) -> None:
    """%ins and %outs point at row `at` of the arguments."""
    for own, given, types in (("ins", "inputs", plan.inputs), ("outs", "outputs", plan.outputs)):
        for k, t in enumerate(types):
            n = f"{own}{k}{tag}"
            code += [f"  %{n}.given = getelementptr ptr, ptr %{given}, i64 {k}", f"  %{n}.base = load ptr, ptr %{n}.given",
                     f"  %{n}.offset = mul i64 {at}, {_row_bytes(t)}", f"  %{n} = getelementptr i8, ptr %{n}.base, i64 %{n}.offset",
                     f"  %{n}.slot = getelementptr ptr, ptr %{own}, i64 {k}", f"  store ptr %{n}, ptr %{n}.slot"]


_OWN = "ptr %ins, ptr %outs, ptr %weights, ptr %arena, ptr %ctx"


def _span(plan: Plan, r: ByRows) -> list[str]:
    code = ["", f"define internal void @tw_span({ARGS}, i64 %begin, i64 %end) nounwind {{", "entry:",
            f"  %ins = alloca [{max(1, len(plan.inputs))} x ptr]", f"  %outs = alloca [{max(1, len(plan.outputs))} x ptr]",
            "  br label %blocks", "blocks:", "  %at = phi i64 [ %begin, %entry ], [ %next, %block ]", f"  %next = add i64 %at, {r.block}",
            "  %whole = icmp sle i64 %next, %end", "  br i1 %whole, label %block, label %rest", "block:"]
    _tables(plan, code, "%at", "b")
    code += [f"  call void @tw_block({_OWN})", "  br label %blocks", "rest:", "  %left = sub i64 %end, %at",
             f"  %many = icmp sge i64 %left, {r.turn}", "  br i1 %many, label %fill, label %rows", "fill:"]
    _tables(plan, code, "%at", "f")
    offset = r.scratch
    back: list[str] = []
    for own, types in (("ins", plan.inputs), ("outs", plan.outputs)):
        for k, t in enumerate(types):
            n, size = f"{own}{k}f", _row_bytes(t)
            code += [f"  %{n}.scratch = getelementptr i8, ptr %arena, i64 {offset}", f"  %{n}.size = mul i64 %left, {size}"]
            if own == "ins":
                code += [f"  call void @llvm.memcpy.p0.p0.i64(ptr %{n}.scratch, ptr %{n}, i64 %{n}.size, i1 false)",
                         f"  %{n}.end = getelementptr i8, ptr %{n}.scratch, i64 %{n}.size",
                         f"  %{n}.empty = sub i64 {t[1].bytes}, %{n}.size",
                         f"  call void @llvm.memset.p0.i64(ptr %{n}.end, i8 0, i64 %{n}.empty, i1 false)"]
            else:
                back.append(f"  call void @llvm.memcpy.p0.p0.i64(ptr %{n}, ptr %{n}.scratch, i64 %{n}.size, i1 false)")
            code.append(f"  store ptr %{n}.scratch, ptr %{n}.slot")
            offset += t[1].bytes
    code += [f"  call void @tw_block({_OWN})", *back, "  ret void", "rows:", "  %row = phi i64 [ %at, %rest ], [ %after, %one ]",
             "  %more = icmp slt i64 %row, %end", "  br i1 %more, label %one, label %done", "one:"]
    _tables(plan, code, "%row", "r")
    return [*code, f"  call void @tw_row({_OWN})", "  %after = add i64 %row, 1", "  br label %rows", "done:", "  ret void", "}"]


def _share(r: ByRows) -> list[str]:
    if r.team == 1:
        return []
    lines = ["", f"define internal void @{SHARE}({SHARE_ARGS}) nounwind {{", "enter:",
             f"  %team = call i64 @llvm.umin.i64(i64 %threads, i64 {r.team})", "  %takes_part = icmp ult i64 %me, %team",
             "  br i1 %takes_part, label %go, label %end", "go:", *_rows(), f"  %up = add i64 %rows, {r.block - 1}",
             f"  %blocks = udiv i64 %up, {r.block}", f"  %offset = mul i64 %me, {r.arena_step}",
             "  %own = getelementptr i8, ptr %arena, i64 %offset", f"  %seq = {sequence('%turn', 0)}", "  br label %take", "take:",
             "  %round = phi i64 [ 0, %go ], [ %more, %run ]",
             f"  %part = call {{ i64, i64 }} @{TAKE}(ptr %deal, i32 %seq, i64 %round, i64 %me, i64 %team, i64 {MOST_PIECES}, ptr null, "
             "i64 %blocks)"]
    for k, name in enumerate(("begin", "stop")):
        lines += [f"  %{name}0 = extractvalue {{ i64, i64 }} %part, {k}", f"  %{name}1 = mul i64 %{name}0, {r.block}",
                  f"  %{name} = call i64 @llvm.umin.i64(i64 %{name}1, i64 %rows)"]
    own = _PASSED.replace("%arena", "%own")
    phase = ["", f"define internal {{ i64, i64 }} @{PHASE}(i64 %number) nounwind {{", "  ret { i64, i64 } zeroinitializer", "}"]
    return [*phase, emit_take(), *lines, "  %some = icmp sge i64 %begin0, 0", "  br i1 %some, label %run, label %end", "run:",
            f"  call void @tw_span({own}, i64 %begin, i64 %stop)", "  %more = add i64 %round, 1", "  br label %take",
            "end:", "  ret void", "}"]


def _rows() -> list[str]:
    return [f"  %rows_at = getelementptr i64, ptr %ctx, i64 {CTX_ROWS}", "  %rows = load i64, ptr %rows_at"]


def _run(r: ByRows, symbol: str) -> list[str]:
    lines = ["", f'define i32 @"{symbol}"({ARGS}) nounwind {{', *_rows()]
    if r.team > 1:
        lines += [f"  %pool_at = getelementptr i64, ptr %ctx, i64 {CTX_POOL}", "  %pool = load ptr, ptr %pool_at",
                  "  %none = icmp eq ptr %pool, null", f"  %few = icmp sle i64 %rows, {r.block}", "  %alone = or i1 %none, %few",
                  "  br i1 %alone, label %serial, label %together", "together:", "  %go = load ptr, ptr %pool",
                  f"  %taken = call i32 %go(ptr %pool, ptr @{SHARE}, i64 1, {_PASSED})",
                  "  %refused = icmp eq i32 %taken, 0", "  br i1 %refused, label %serial, label %end", "serial:"]
    else:
        lines += ["  br label %serial", "serial:"]
    return [*lines, f"  call void @tw_span({_PASSED}, i64 0, i64 %rows)", "  br label %end", "end:", "  %error = load i64, ptr %ctx",
            "  %bad = icmp ne i64 %error, 0", "  %result = zext i1 %bad to i32", "  ret i32 %result", "}"]
