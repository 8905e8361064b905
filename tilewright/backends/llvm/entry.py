"""The entry point of a plan as LLVM IR: one function that calls the kernels in order.

    i32 tw_run(ptr inputs, ptr outputs, ptr weights, ptr arena, ptr ctx) {
      if (ctx->pool && ctx->pool->run(ctx->pool, tw_share, 3 /* phases */, inputs, outputs, weights, arena, ctx))
        return ctx->error != 0;                                   // plans for several threads only
      matmul_0(inputs[0], weights[0], arena + 64, arena + 4096 /* workspace */, 0, 7 /* trips */, ctx);
      return ctx->error != 0;
    }

For a plan with phases there is as well what one of several threads does in one of them:

    void tw_share(ptr inputs, ptr outputs, ptr weights, ptr arena, ptr ctx, i64 phase, i64 me, i64 threads, ptr deal, i32 turn) {
      switch (phase) {
        case 0: team = min(2, threads);                           // a call for two threads: parts until none is left
                if (me < team) for (round = 0; (part = tw_take(deal, turn + 1, round, me, team, 4, cuts, 7)).begin >= 0; round++)
                  matmul_0(…, arena + 4096 + me * step, part.begin, part.end, ctx);
                break;
        case 1: if (me == 0) softmax_1(…, 0, 1, ctx);             // a call for one
                if (me == 0) reshape_2(…, 0, 1, ctx);
                break; …

Which parts a thread takes, and when those of others, `stealing.py` says. A loop of the plan is one of the code; what it reads
and writes moves on with every step. Where its calls are for several threads, each of its phases comes once in every step: the
pool counts all of them, and `tw_phase` says which one of the plan a number stands for, and in which step.

The context (`CTX_FIELDS`), 8 bytes a field, one for each call in flight:

    0  i64 error   set to 1 by a kernel when an index from data is out of range; the caller clears it
    1  ptr pool    NULL, or a pool: its first word is a function `run` as above, which calls `share` for every phase and
                   every thread, phase after phase, and returns 1; or refuses by returning 0
    2  i64 rows    plans by rows: of this call's inputs and outputs

A plan by rows has functions for a block and for one row; `entry_rows.py` says how they are called.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..plan import KernelCall, Loop, Plan, Slot
from .stealing import TAKE, emit_take, sequence

ENTRY, SHARE, PHASE = "tw_run", "tw_share", "tw_phase"
CTX_FIELDS = 3
CTX_ERROR, CTX_POOL, CTX_ROWS = 0, 1, 2
TABLES = {"input": "inputs", "output": "outputs", "weight": "weights"}
ARGS = "ptr %inputs, ptr %outputs, ptr %weights, ptr %arena, ptr %ctx"
SHARE_ARGS = f"{ARGS}, i64 %phase, i64 %me, i64 %threads, ptr %deal, i32 %turn"


def emit_entry(plan: Plan, symbol: str = ENTRY, fill: bool = False) -> str:
    """LLVM IR text of the plan's entry point, with declarations of its kernels. `fill`: the arena holds anything when a call
    begins, so the plan's fills come first."""
    declared: dict[str, int] = {}
    for c in plan.every_call:
        assert declared.setdefault(c.symbol, len(c.args)) == len(c.args), f"{c.symbol} is called with different numbers of arguments"
    lines = [f"declare hidden void @{_quoted(s)}({', '.join(['ptr'] * (n + 1))}, i64, i64, ptr)" for s, n in declared.items()]
    if plan.by_rows:
        from .entry_rows import rows_functions
        return "\n".join([*lines, *rows_functions(plan, plan.by_rows, symbol), ""])
    if plan.phases:
        lines += ["", *_phase(plan)]
        share = Calls(plan)
        body = _share(plan, share)
        lines += ["", *(f"{t} = internal constant [{len(n)} x i64] [{', '.join(f'i64 {x}' for x in n)}]" for n, t in share.tables.items()),
                  emit_take(), f"define internal void @{SHARE}({SHARE_ARGS}) nounwind {{", *body, "}"]
    lines += ["", f"define i32 @{_quoted(symbol)}({ARGS}) nounwind {{", *_run(plan, fill)]
    return "\n".join([*lines, "}", ""])


def _run(plan: Plan, fill: bool) -> list[str]:
    code = Calls(plan)
    for c in plan.fills if fill else ():
        code.call(c)
    if plan.phases:
        code.lines += [
            f"  %pool_at = getelementptr i64, ptr %ctx, i64 {CTX_POOL}", "  %pool = load ptr, ptr %pool_at",
            "  %alone = icmp eq ptr %pool, null", "  br i1 %alone, label %serial, label %together",
            "together:", "  %go = load ptr, ptr %pool",
            f"  %taken = call i32 %go(ptr %pool, ptr @{SHARE}, i64 {plan.meetings}, {ARGS})",
            "  %refused = icmp eq i32 %taken, 0", "  br i1 %refused, label %serial, label %end", "serial:"]
    for loop, calls in _pieces(plan, 0, len(plan.calls)):
        if loop is None:
            for c in calls:
                code.call(c)
        else:
            code.loop(loop, calls)
    assert CTX_ERROR == 0
    code.lines += ["  br label %end", "end:", "  %error = load i64, ptr %ctx", "  %bad = icmp ne i64 %error, 0",
                   "  %result = zext i1 %bad to i32", "  ret i32 %result"]
    return code.lines


def _pieces(plan: Plan, first: int, last: int) -> Iterator[tuple[Loop | None, tuple[KernelCall, ...]]]:
    """The calls at positions first .. last - 1, those of a loop together."""
    at = first
    for x in plan.loops:
        if at <= x.first < last:
            for k in range(at, x.first):
                yield None, plan.calls[k:k + 1]
            yield x, plan.calls[x.first:x.last]
            at = x.last
    for k in range(at, last):
        yield None, plan.calls[k:k + 1]


def _phase(plan: Plan) -> list[str]:
    """IR of `{ i64 phase of the plan, i64 step } tw_phase(i64 number)`: phases of a divided loop of n phases and T steps
    have the numbers first + t * n + k."""
    lines = [f"define internal {{ i64, i64 }} @{PHASE}(i64 %number) nounwind {{"]
    found, step, more = "%number", "0", 0
    for j, x in enumerate(x for x in plan.loops if plan.divided(x)):
        static = sum(p < x.first for p in plan.phases)
        n = sum(x.first <= p < x.last for p in plan.phases)
        first, more = static + more, more + n * (x.trips - 1)
        lines += [f"  %rel{j} = sub i64 %number, {first}", f"  %in{j} = icmp ult i64 %rel{j}, {n * x.trips}",
                  f"  %t{j} = udiv i64 %rel{j}, {n}", f"  %k{j} = urem i64 %rel{j}, {n}", f"  %own{j} = add i64 %k{j}, {static}",
                  f"  %behind{j} = icmp uge i64 %number, {first + n * x.trips}", f"  %late{j} = sub i64 %number, {more}",
                  f"  %else{j} = select i1 %behind{j}, i64 %late{j}, i64 {found}",
                  f"  %found{j} = select i1 %in{j}, i64 %own{j}, i64 %else{j}", f"  %step{j} = select i1 %in{j}, i64 %t{j}, i64 {step}"]
        found, step = f"%found{j}", f"%step{j}"
    return [*lines, f"  %a = insertvalue {{ i64, i64 }} undef, i64 {found}, 0", f"  %b = insertvalue {{ i64, i64 }} %a, i64 {step}, 1",
            "  ret { i64, i64 } %b", "}"]


def _share(plan: Plan, code: Calls) -> list[str]:
    """The first thread runs the calls for one thread, so that those of a phase are in order."""
    cases = " ".join(f"i64 {k}, label %phase{k}" for k in range(len(plan.phases)))
    code.lines += [f"  %which = call {{ i64, i64 }} @{PHASE}(i64 %phase)", "  %index = extractvalue { i64, i64 } %which, 0",
                   "  %step = extractvalue { i64, i64 } %which, 1", f"  switch i64 %index, label %end [ {cases} ]"]
    divided = [x for x in plan.loops if plan.divided(x)]
    number = 0
    for k, (first, last) in enumerate(zip(plan.phases, (*plan.phases[1:], len(plan.calls)), strict=True)):
        code.lines.append(f"phase{k}:")
        index = 0
        code.step = "%step" if any(x.first <= first < x.last for x in divided) else "0"
        for loop, calls in ([(None, (c,)) for c in plan.calls[first:last]] if code.step != "0" else _pieces(plan, first, last)):
            team = max(c.team for c in calls)
            size = code.define("select i1 {}, i64 %threads, i64 {}", code.define("icmp ult i64 %threads, {}", team), team)
            takes_part = code.define("icmp ult i64 %me, {}", size)
            code.lines += [f"  br i1 {takes_part}, label %do{number}, label %done{number}", f"do{number}:"]
            code.names.clear()  # an address computed there is not known after it
            if loop is None and team > 1:
                code.divided(calls[0], size, index)
                index += 1
            elif loop is None:
                code.call(calls[0])
            else:
                code.loop(loop, calls)
            code.lines += [f"  br label %done{number}", f"done{number}:"]
            number += 1
        code.lines.append("  br label %end")
    return [*code.lines, "end:", "  ret void"]


class Calls:
    """The body of a function under construction. `names`: addresses of slots that are at hand. `step`: the value that counts
    the steps of a loop. `tables`: constant tables of the bounds of parts -> their symbols."""

    def __init__(self, plan: Plan) -> None:
        self.lines: list[str] = []
        self.names: dict[Slot, str] = {}
        self.count = 0
        self.step = "0"
        self.tables: dict[tuple[int, ...], str] = {}

    def loop(self, loop: Loop, calls: Sequence[KernelCall]) -> None:
        """All steps of a loop on one thread."""
        slots = [s for c in calls for s in (*c.args, *((c.workspace,) if c.workspace else ()))]
        for s in slots:
            self.pointer(Slot(s.kind, s.index, s.offset))  # before the loop, not in every step
        n, known, outside = self.count, dict(self.names), self.step
        self.count += 1
        self.step = f"%t{n}"
        self.lines += [f"  br label %enter{n}", f"enter{n}:", f"  br label %loop{n}", f"loop{n}:",
                       f"  %t{n} = phi i64 [ 0, %enter{n} ], [ %next{n}, %last{n} ]"]
        for c in calls:
            self.call(c)
        self.lines += [f"  br label %last{n}", f"last{n}:", f"  %next{n} = add i64 %t{n}, 1",
                       f"  %more{n} = icmp ult i64 %next{n}, {loop.trips}",
                       f"  br i1 %more{n}, label %loop{n}, label %left{n}", f"left{n}:"]
        self.names, self.step = known, outside

    def call(self, c: KernelCall) -> None:
        """One call, all of it."""
        args = [f"ptr {self.pointer(s)}" for s in c.args]
        self._kernel(c, args, self.pointer(c.workspace) if c.workspace else "null", "0", f"{c.trips}")

    def divided(self, c: KernelCall, team: str, index: int) -> None:
        """The parts of a call that thread %me of `team` takes, until none is left; it is the phase's `index`-th such call."""
        args = [f"ptr {self.pointer(s)}" for s in c.args]
        space = "null"
        if c.workspace:
            own = self.define("mul i64 %me, {}", c.workspace_step)
            space = self.define("getelementptr i8, ptr {}, i64 {}", self.pointer(c.workspace), own)
        cuts = "null"
        if c.cuts:
            table = self.tables.setdefault((0, *c.cuts, c.trips), f"@tw_cuts{len(self.tables)}")
            cuts = self.define("select i1 {}, ptr {}, ptr null", self.define("icmp eq i64 {}, {}", team, c.team), table)
        number = sequence("%turn", index)
        deal, seq = ("%deal", self.define(number)) if number else ("null", "0")
        n = self.count
        self.count += 1
        self.lines += [f"  br label %enter{n}", f"enter{n}:", f"  br label %take{n}", f"take{n}:",
                       f"  %round{n} = phi i64 [ 0, %enter{n} ], [ %more{n}, %run{n} ]"]
        part = self.define(f"call {{{{ i64, i64 }}}} @{TAKE}(ptr {deal}, i32 {seq}, i64 %round{n}, i64 %me, i64 {team}, i64 {c.pieces}, "
                           f"ptr {cuts}, i64 {c.trips})")
        begin, end = (self.define("extractvalue {{ i64, i64 }} {}, {}", part, k) for k in (0, 1))
        some = self.define("icmp sge i64 {}, 0", begin)
        self.lines += [f"  br i1 {some}, label %run{n}, label %taken{n}", f"run{n}:"]
        self._kernel(c, args, space, begin, end)
        self.lines += [f"  %more{n} = add i64 %round{n}, 1", f"  br label %take{n}", f"taken{n}:"]

    def _kernel(self, c: KernelCall, args: Sequence[str], space: str, begin: str, end: str) -> None:
        passed = ", ".join([*args, f"ptr {space}", f"i64 {begin}", f"i64 {end}", "ptr %ctx"])
        self.lines.append(f"  call void @{_quoted(c.symbol)}({passed})")

    def define(self, text: str, *args: object) -> str:
        """The name of a new value."""
        name = f"%v{self.count}"
        self.count += 1
        self.lines.append(f"  {name} = {text.format(*args)}")
        return name

    def pointer(self, s: Slot) -> str:
        """The name of the slot's address; the code that computes it is written before the first use."""
        if s not in self.names:
            if s.step and self.step != "0":
                name = self.define("getelementptr i8, ptr {}, i64 {}", self.pointer(Slot(s.kind, s.index, s.offset)),
                                   self.define("mul i64 {}, {}", self.step, s.step))
            elif s.kind == "arena":
                name = self.define("getelementptr i8, ptr %arena, i64 {}", s.offset)
            elif s.offset:
                name = self.define("getelementptr i8, ptr {}, i64 {}", self.pointer(Slot(s.kind, s.index)), s.offset)
            else:
                name = self.define("load ptr, ptr {}", self.define("getelementptr ptr, ptr %{}, i64 {}", TABLES[s.kind], s.index))
            self.names[s] = name
        return self.names[s]


def _quoted(symbol: str) -> str:
    return f'"{symbol}"'
