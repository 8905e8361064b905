"""The entry point of a plan as LLVM IR: one function that calls the kernels in order.

    i32 tw_run(ptr inputs, ptr outputs, ptr weights, ptr arena, ptr ctx) {
      if (ctx->pool && ctx->pool->run(ctx->pool, tw_share, 3 /* phases */, inputs, outputs, weights, arena, ctx))
        return ctx->error != 0;                                   // plans for several threads only
      matmul_0(inputs[0], weights[0], arena + 64, arena + 4096 /* workspace */, 0, 7 /* trips */, ctx);
      if (ctx->host[0](arena + 64, outputs[0])) ctx->error = 1;
      return ctx->error != 0;
    }

For a plan with phases there is as well what one of several threads does in one of them:

    void tw_share(ptr inputs, ptr outputs, ptr weights, ptr arena, ptr ctx, i64 phase, i64 me, i64 threads) {
      switch (phase) {
        case 0: team = min(2, threads);                           // a call for two threads
                if (me < team) matmul_0(…, arena + 4096 + me * step, 7 * me / team, 7 * (me + 1) / team, ctx);
                break;
        case 1: if (me == 0) softmax_1(…, 0, 1, ctx);             // a call for one
                if (me == 0) reshape_2(…, 0, 1, ctx);
                break; …

The context (`CTX_FIELDS`), 8 bytes a field, one for each call in flight:

    0  i64 error   set to 1 by a kernel when an index from data is out of range; the caller clears it
    1  ptr host    table of the host functions, one for each HostCall of the plan, in order
    2  ptr pool    NULL, or a pool: its first word is a function `run` as above, which calls `share` for every phase and
                   every thread, phase after phase, and returns 1; or refuses by returning 0
    3  i64         reserved
"""
from __future__ import annotations

from ..plan import Call, HostCall, KernelCall, Plan, Slot

ENTRY, SHARE = "tw_run", "tw_share"
CTX_FIELDS = 4
CTX_ERROR, CTX_HOST, CTX_POOL = 0, 1, 2
_TABLES = {"input": "inputs", "output": "outputs", "weight": "weights"}
_ARGS = "ptr %inputs, ptr %outputs, ptr %weights, ptr %arena, ptr %ctx"


def emit_entry(plan: Plan, symbol: str = ENTRY) -> str:
    """LLVM IR text of the plan's entry point, with declarations of its kernels."""
    declared: dict[str, int] = {}
    for c in plan.calls:
        if isinstance(c, KernelCall):
            assert declared.setdefault(c.symbol, len(c.args)) == len(c.args), f"{c.symbol} is called with different numbers of arguments"
    lines = [f"declare hidden void @{_quoted(s)}({', '.join(['ptr'] * (n + 1))}, i64, i64, ptr)" for s, n in declared.items()]
    if plan.phases:
        lines += ["", f"define internal void @{SHARE}({_ARGS}, i64 %phase, i64 %me, i64 %threads) nounwind {{", *_share(plan), "}"]
    lines += ["", f"define i32 @{_quoted(symbol)}({_ARGS}) nounwind {{", *_run(plan)]
    return "\n".join([*lines, "}", ""])


def _run(plan: Plan) -> list[str]:
    code = _Code(plan)
    if plan.phases:
        code.lines += [
            f"  %pool_at = getelementptr i64, ptr %ctx, i64 {CTX_POOL}", "  %pool = load ptr, ptr %pool_at",
            "  %alone = icmp eq ptr %pool, null", "  br i1 %alone, label %serial, label %together",
            "together:", "  %go = load ptr, ptr %pool",
            f"  %taken = call i32 %go(ptr %pool, ptr @{SHARE}, i64 {len(plan.phases)}, {_ARGS})",
            "  %refused = icmp eq i32 %taken, 0", "  br i1 %refused, label %serial, label %end", "serial:"]
    for c in plan.calls:
        code.call(c)
    assert CTX_ERROR == 0
    code.lines += ["  br label %end", "end:", "  %error = load i64, ptr %ctx", "  %bad = icmp ne i64 %error, 0",
                   "  %result = zext i1 %bad to i32", "  ret i32 %result"]
    return code.lines


def _share(plan: Plan) -> list[str]:
    """The first thread runs the calls for one thread, so that those of a phase are in order."""
    code = _Code(plan)
    cases = " ".join(f"i64 {k}, label %phase{k}" for k in range(len(plan.phases)))
    code.lines += [f"  switch i64 %phase, label %end [ {cases} ]"]
    for k, (first, last) in enumerate(zip(plan.phases, (*plan.phases[1:], len(plan.calls)), strict=True)):
        code.lines.append(f"phase{k}:")
        for number in range(first, last):
            c = plan.calls[number]
            team = c.team if isinstance(c, KernelCall) else 1
            size = code.define("select i1 {}, i64 %threads, i64 {}", code.define("icmp ult i64 %threads, {}", team), team)
            takes_part = code.define("icmp ult i64 %me, {}", size)
            code.lines += [f"  br i1 {takes_part}, label %do{number}, label %done{number}", f"do{number}:"]
            code.names.clear()  # an address computed there is not known after it
            code.call(c, size if team > 1 else "")
            code.lines += [f"  br label %done{number}", f"done{number}:"]
        code.lines.append("  br label %end")
    return [*code.lines, "end:", "  ret void"]


class _Code:
    """The body of a function under construction. `names`: addresses of slots that are at hand."""

    def __init__(self, plan: Plan) -> None:
        self.lines: list[str] = []
        self.names: dict[Slot, str] = {}
        self.host = {id(c): k for k, c in enumerate(plan.host_calls)}
        self.count = 0

    def call(self, c: Call, team: str = "") -> None:
        """One call; with `team`, which is its size, only the share of thread %me."""
        args = [f"ptr {self.pointer(s)}" for s in c.args]
        if isinstance(c, HostCall):
            self._host_call(self.host[id(c)], args)
            return
        space = self.pointer(c.workspace) if c.workspace else "null"
        begin, end = "0", f"{c.trips}"
        if team:
            if c.workspace:
                space = self.define("getelementptr i8, ptr {}, i64 {}", space, self.define("mul i64 %me, {}", c.workspace_step))
            begin, end = self._bound(c, "%me", team), self._bound(c, self.define("add i64 %me, 1"), team)
        args += [f"ptr {space}", f"i64 {begin}", f"i64 {end}", "ptr %ctx"]
        self.lines.append(f"  call void @{_quoted(c.symbol)}({', '.join(args)})")

    def _bound(self, c: KernelCall, thread: str, team: str) -> str:
        """Where the share of a thread begins."""
        return self.define("udiv i64 {}, {}", self.define("mul i64 {}, {}", thread, c.trips), team)

    def define(self, text: str, *args: object) -> str:
        """The name of a new value."""
        name = f"%v{self.count}"
        self.count += 1
        self.lines.append(f"  {name} = {text.format(*args)}")
        return name

    def pointer(self, s: Slot) -> str:
        """The name of the slot's address; the code that computes it is written before the first use."""
        if s not in self.names:
            if s.kind == "arena":
                name = self.define("getelementptr i8, ptr %arena, i64 {}", s.offset)
            elif s.offset:
                name = self.define("getelementptr i8, ptr {}, i64 {}", self.pointer(Slot(s.kind, s.index)), s.offset)
            else:
                name = self.define("load ptr, ptr {}", self.define("getelementptr ptr, ptr %{}, i64 {}", _TABLES[s.kind], s.index))
            self.names[s] = name
        return self.names[s]

    def _host_call(self, number: int, args: list[str]) -> None:
        """Stores an error only if there is one: other threads may be storing theirs."""
        table = self.define("load ptr, ptr {}", self.define("getelementptr i64, ptr %ctx, i64 {}", CTX_HOST))
        function = self.define("load ptr, ptr {}", self.define("getelementptr ptr, ptr {}, i64 {}", table, number))
        failed = self.define("icmp ne i32 {}, 0", self.define("call i32 {}({})", function, ", ".join(args)))
        n = self.count
        self.lines += [f"  br i1 {failed}, label %failed{n}, label %went{n}", f"failed{n}:", "  store i64 1, ptr %ctx",
                       f"  br label %went{n}", f"went{n}:"]


def _quoted(symbol: str) -> str:
    return f'"{symbol}"'
