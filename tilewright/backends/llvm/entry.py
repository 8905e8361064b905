"""The entry point of a plan as LLVM IR: one function that calls the kernels in order.

    i32 tw_run(ptr inputs, ptr outputs, ptr weights, ptr arena, ptr ctx) {
      x0 = inputs[0]; w0 = weights[0]; …
      matmul_0(x0, w0, arena + 64, arena + 4096 /* workspace */, 0, 7 /* trips */, ctx);
      ctx->error |= ctx->host[0](arena + 64, y0);
      return ctx->error != 0;
    }

The context (`CTX_FIELDS`), 8 bytes a field, one for each call in flight:

    0  i64 error   set to 1 by a kernel when an index from data is out of range; the caller clears it
    1  ptr host    table of the host functions, one for each HostCall of the plan, in order
    2  ptr pool    reserved for the thread pool
    3  i64         reserved
"""
from __future__ import annotations

from ..plan import HostCall, KernelCall, Plan, Slot

ENTRY = "tw_run"
CTX_FIELDS = 4
CTX_ERROR, CTX_HOST, CTX_POOL = 0, 1, 2
_TABLES = {"input": "inputs", "output": "outputs", "weight": "weights"}


def emit_entry(plan: Plan, symbol: str = ENTRY) -> str:
    """LLVM IR text of the plan's entry point, with declarations of its kernels."""
    declared: dict[str, int] = {}
    for c in plan.calls:
        if isinstance(c, KernelCall):
            assert declared.setdefault(c.symbol, len(c.args)) == len(c.args), f"{c.symbol} is called with different numbers of arguments"
    lines = [f"declare hidden void @{_quoted(s)}({', '.join(['ptr'] * (n + 1))}, i64, i64, ptr)" for s, n in declared.items()]
    lines += ["", f"define i32 @{_quoted(symbol)}(ptr %inputs, ptr %outputs, ptr %weights, ptr %arena, ptr %ctx) nounwind {{"]
    lines += _body(plan)
    return "\n".join([*lines, "}", ""])


def _body(plan: Plan) -> list[str]:
    lines: list[str] = []
    names: dict[Slot, str] = {}

    def pointer(s: Slot) -> str:
        """The name of the slot's address; the code that computes it is written before the first use."""
        if s in names:
            return names[s]
        if s.kind == "arena":
            name = f"%a{s.offset}"
            lines.append(f"  {name} = getelementptr i8, ptr %arena, i64 {s.offset}")
        elif s.offset:
            base, name = pointer(Slot(s.kind, s.index)), f"%{s.kind}{s.index}_{s.offset}"
            lines.append(f"  {name} = getelementptr i8, ptr {base}, i64 {s.offset}")
        else:
            name = f"%{s.kind}{s.index}"
            lines.append(f"  {name}_at = getelementptr ptr, ptr %{_TABLES[s.kind]}, i64 {s.index}")
            lines.append(f"  {name} = load ptr, ptr {name}_at")
        names[s] = name
        return name

    host = 0
    for c in plan.calls:
        args = [f"ptr {pointer(s)}" for s in c.args]
        if isinstance(c, KernelCall):
            args += [f"ptr {pointer(c.workspace) if c.workspace else 'null'}", "i64 0", f"i64 {c.trips}", "ptr %ctx"]
            lines.append(f"  call void @{_quoted(c.symbol)}({', '.join(args)})")
        else:
            assert isinstance(c, HostCall)
            lines += _host_call(host, args)
            host += 1
    assert CTX_ERROR == 0
    return [*lines, "  %error = load i64, ptr %ctx", "  %bad = icmp ne i64 %error, 0", "  %result = zext i1 %bad to i32",
            "  ret i32 %result"]


def _host_call(number: int, args: list[str]) -> list[str]:
    n = number
    return [f"  %table{n}_at = getelementptr i64, ptr %ctx, i64 {CTX_HOST}", f"  %table{n} = load ptr, ptr %table{n}_at",
            f"  %host{n}_at = getelementptr ptr, ptr %table{n}, i64 {n}", f"  %host{n} = load ptr, ptr %host{n}_at",
            f"  %code{n} = call i32 %host{n}({', '.join(args)})", f"  %wide{n} = zext i32 %code{n} to i64",
            f"  %before{n} = load i64, ptr %ctx", f"  %after{n} = or i64 %before{n}, %wide{n}", f"  store i64 %after{n}, ptr %ctx"]


def _quoted(symbol: str) -> str:
    return f'"{symbol}"'
