"""The thread pool as LLVM IR: native code, so that workers need neither Python nor its lock.

    i32 tw_pool_run(P, share, phases, inputs, outputs, weights, arena, ctx) {    // 1: done; 0: the caller does it alone
      if (P->stopped || !compare_exchange(&S->busy, 0, 1)) return 0;             // S = P->state
      if (!S->started) start(P);                                                 // the first time, and after a fork
      S->job = {share, phases, …}; signal(&S->epoch, S->epoch + 1, &S->parked);
      walk(P, 0);
      S->base += phases; S->busy = 0; return 1;
    }
    worker(P): me = ++S->ids
      for (e = 1;; e++) {
        wait(&S->epoch, e, &S->parked); if (S->stop) return;
        if (P->roomy && S->cpu == sched_getcpu()) leave it to the caller, who set S->cpu: forbid it for a moment
        walk(P, me); }
    walk(P, me):                                                                 // one wake for the whole plan
      S->deal[me] = S->base * DEAL_CALLS << 32, unless it is ahead of that     // nothing left of any call before this job
      for p in phases: share(…, ctx, p, me, P->threads, S->deal, (S->base + p) * DEAL_CALLS);  k = S->base + p + 1
        signal(&S->arrived[me], k, &S->sleepers)
        if (p is not the last, or me == 0) for t in threads: wait(&S->arrived[t], k, &S->sleepers)   // spins PATIENCE times longer
    signal(word, v, sleepers): *word = v; if (*sleepers) futex_wake(word)        // both sequentially consistent, as are
    wait(word, v, sleepers):                                                     // (1) and (2): no wake is lost
      while (*word - v < 0)
        if (spins++ < P->spin) pause;
        else { ++*sleepers /* 1 */; u = *word /* 2 */; if (u - v < 0) futex_wait(word, u); --*sleepers; spins = 0; }

Numbers of phases and jobs wrap around, so they are compared by their difference. Every thread has a line of its own for
`arrived`: passing a barrier costs one store and a read of each other line (after J. Mellor-Crummey and M. Scott, "Algorithms
for scalable synchronization on shared-memory multiprocessors", 1991). The state lies in pages that the kernel clears in a
forked child (MADV_WIPEONFORK), where the workers do not exist: there it says "not started" again. `deal` is what `stealing.py` works
on: one word of each thread, in its part.
"""
from __future__ import annotations

from ..target import Target

POOL_RUN, POOL_STOP = "tw_pool_run", "tw_pool_stop"
NEEDS = ("pthread_create", "pthread_join", "pthread_sigmask", "syscall", "sched_getcpu", "sched_getaffinity", "sched_setaffinity")
HANDLE_BYTES, STATE_BYTES, THREAD_BYTES = 64, 768, 128  # of a pool, of its state without threads, of each thread in it
RUN, STATE, THREADS, SPIN, STOPPED, ROOMY = 0, 8, 16, 24, 32, 40   # byte offsets in the pool: what every process and its forks share

PATIENCE = 80  # how much longer than for a job threads spin for each other inside of one (milliseconds): all are at work, and who sleeps
#                gives its processor back to the host of a virtual machine, which takes its time when the host is busy

# byte offsets in the state: words that different threads write lie in lines (pairs of lines) of their own
_BUSY, _EPOCH, _PARKED, _SLEEPERS, _JOB, _STARTED = 0, 128, 256, 384, 512, 640
_JOB_FIELDS = ("share", "phases", "inputs", "outputs", "weights", "arena", "ctx")
_BASE, _STOP = _JOB + 8 * len(_JOB_FIELDS), _JOB + 8 * len(_JOB_FIELDS) + 4
_IDS, _CREATED = _STARTED + 4, _STARTED + 8
_CPU = _JOB + 64  # where the caller runs
_HANDLE, _DEAL = 64, 72  # in each thread's part, where `arrived` comes first
DEAL_CALLS = 16  # numbers that a phase has for its calls, the first of which is none's
_FUTEX = {"x86_64": 202, "aarch64": 98}
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, private
_PAUSE = {"x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),  # what tells the core to wait a little
          "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)")}


def supported(target: Target) -> bool:
    """Whether there is a pool for the target's processor."""
    return target.arch in _FUTEX and "linux" in target.triple


def emit_pool(target: Target) -> str:
    """LLVM IR text of `tw_pool_run` and `tw_pool_stop`."""
    futex, (declaration, pause) = _FUTEX[target.arch], _PAUSE[target.arch]
    return "\n".join([_DECLARATIONS, declaration, _waiting(futex, pause), _WALK, _WORKER, _RUN_CODE, _STOP_CODE])


def _at(name: str, base: str, offset: int) -> str:
    return f"  %{name} = getelementptr i8, ptr %{base}, i64 {offset}"


_DECLARATIONS = """declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i64 @syscall(i64, ...)
declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
"""


def _waiting(futex: int, pause: str) -> str:
    return f"""
define internal void @signal(ptr %word, i32 %value, ptr %sleepers) nounwind {{
  store atomic i32 %value, ptr %word seq_cst, align 4
  %n = load atomic i32, ptr %sleepers seq_cst, align 4
  %none = icmp eq i32 %n, 0
  br i1 %none, label %done, label %wake
wake:
  %r = call i64 (i64, ...) @syscall(i64 {futex}, ptr %word, i64 {_WAKE}, i64 {2 ** 31 - 1}, ptr null)
  br label %done
done:
  ret void
}}

define internal void @wait(ptr %word, i32 %value, ptr %sleepers, i64 %spin) nounwind {{
entry:
  br label %look
look:
  %spins = phi i64 [ 0, %entry ], [ %more, %again ], [ 0, %awake ]
  %have = load atomic i32, ptr %word acquire, align 4
  %ahead = sub i32 %have, %value
  %reached = icmp sge i32 %ahead, 0
  br i1 %reached, label %done, label %missing
missing:
  %hot = icmp ult i64 %spins, %spin
  br i1 %hot, label %again, label %park
again:
  {pause}
  %more = add i64 %spins, 1
  br label %look
park:
  %before = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %seen = load atomic i32, ptr %word seq_cst, align 4
  %ahead2 = sub i32 %seen, %value
  %late = icmp sge i32 %ahead2, 0
  br i1 %late, label %awake, label %sleep
sleep:
  %wide = zext i32 %seen to i64
  %r = call i64 (i64, ...) @syscall(i64 {futex}, ptr %word, i64 {_WAIT}, i64 %wide, ptr null)
  br label %awake
awake:
  %after = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %look
done:
  ret void
}}
"""


def _load_job() -> str:
    lines = []
    for k, name in enumerate(_JOB_FIELDS):
        lines += [_at(f"{name}_at", "state", _JOB + 8 * k),
                  f"  %{name} = load {'i64' if name == 'phases' else 'ptr'}, ptr %{name}_at"]
    return "\n".join(lines)


_WALK = f"""
define internal void @walk(ptr %pool, i64 %me) nounwind {{
entry:
{_at("state_at", "pool", STATE)}
  %state = load ptr, ptr %state_at
{_at("threads_at", "pool", THREADS)}
  %threads = load i64, ptr %threads_at
{_at("spin_at", "pool", SPIN)}
  %idle = load i64, ptr %spin_at
  %spin = mul i64 %idle, {PATIENCE}
{_at("sleepers", "state", _SLEEPERS)}
{_at("base_at", "state", _BASE)}
  %base = load i32, ptr %base_at
{_load_job()}
{_at("parts", "state", STATE_BYTES)}
  %my_offset = mul i64 %me, {THREAD_BYTES}
  %mine = getelementptr i8, ptr %parts, i64 %my_offset
  %leader = icmp eq i64 %me, 0
{_at("deal", "parts", _DEAL)}
  %own_deal = getelementptr i8, ptr %deal, i64 %my_offset
  %turn0 = mul i32 %base, {DEAL_CALLS}
  %first_word = load atomic i64, ptr %own_deal acquire, align 8
  %first_high = lshr i64 %first_word, 32
  %first_seq = trunc i64 %first_high to i32
  %first_ahead = sub i32 %first_seq, %turn0
  %outdated = icmp slt i32 %first_ahead, 0
  br i1 %outdated, label %renew, label %begin
renew:
  %turn_wide = zext i32 %turn0 to i64
  %new_word = shl i64 %turn_wide, 32
  %renewed = cmpxchg ptr %own_deal, i64 %first_word, i64 %new_word acq_rel acquire, align 8
  br label %begin
begin:
  br label %phase
phase:
  %p = phi i64 [ 0, %begin ], [ %next, %passed ]
  %phase32 = trunc i64 %p to i32
  %number = add i32 %base, %phase32
  %turn = mul i32 %number, {DEAL_CALLS}
  call void %share(ptr %inputs, ptr %outputs, ptr %weights, ptr %arena, ptr %ctx, i64 %p, i64 %me, i64 %threads, ptr %deal, i32 %turn)
  %next = add i64 %p, 1
  %count = trunc i64 %next to i32
  %k = add i32 %base, %count
  call void @signal(ptr %mine, i32 %k, ptr %sleepers)
  %last = icmp eq i64 %next, %phases
  %not_last = xor i1 %last, true
  %waits = or i1 %not_last, %leader
  br i1 %waits, label %barrier, label %done
barrier:
  %t = phi i64 [ 0, %phase ], [ %t1, %barrier ]
  %offset = mul i64 %t, {THREAD_BYTES}
  %theirs = getelementptr i8, ptr %parts, i64 %offset
  call void @wait(ptr %theirs, i32 %k, ptr %sleepers, i64 %spin)
  %t1 = add i64 %t, 1
  %all = icmp eq i64 %t1, %threads
  br i1 %all, label %passed, label %barrier
passed:
  br i1 %last, label %done, label %phase
done:
  ret void
}}
"""

_WORKER = f"""
define internal ptr @worker(ptr %pool) nounwind {{
entry:
{_at("state_at", "pool", STATE)}
  %state = load ptr, ptr %state_at
{_at("spin_at", "pool", SPIN)}
  %spin = load i64, ptr %spin_at
{_at("ids", "state", _IDS)}
  %id = atomicrmw add ptr %ids, i32 1 seq_cst
  %number = add i32 %id, 1
  %me = zext i32 %number to i64
{_at("epoch", "state", _EPOCH)}
{_at("parked", "state", _PARKED)}
{_at("stop_at", "state", _STOP)}
{_at("roomy", "pool", ROOMY)}
{_at("cpu_at", "state", _CPU)}
  br label %job
job:
  %e = phi i32 [ 1, %entry ], [ %e1, %work ]
  call void @wait(ptr %epoch, i32 %e, ptr %parked, i64 %spin)
  %stop = load i32, ptr %stop_at
  %go = icmp eq i32 %stop, 0
  br i1 %go, label %place, label %end
place:
  %room = load i64, ptr %roomy
  %alone = icmp eq i64 %room, 0
  br i1 %alone, label %work, label %compare
compare:
  %taken = load i32, ptr %cpu_at
  %here = call i32 @sched_getcpu()
  %crowd = icmp eq i32 %taken, %here
  br i1 %crowd, label %aside, label %work
aside:
  call void @step_aside(i32 %here)
  br label %work
work:
  call void @walk(ptr %pool, i64 %me)
  %e1 = add i32 %e, 1
  br label %job
end:
  ret ptr null
}}

define internal void @step_aside(i32 %cpu) nounwind {{
entry:
  %old = alloca [1024 x i8], align 8
  %new = alloca [1024 x i8], align 8
  call void @llvm.memset.p0.i64(ptr %old, i8 0, i64 1024, i1 false)
  %r0 = call i32 @sched_getaffinity(i32 0, i64 1024, ptr %old)
  %known = icmp eq i32 %r0, 0
  %valid = icmp ult i32 %cpu, 8192
  %able = and i1 %known, %valid
  br i1 %able, label %move, label %end
move:
  call void @llvm.memcpy.p0.p0.i64(ptr %new, ptr %old, i64 1024, i1 false)
  %byte = lshr i32 %cpu, 3
  %bit = and i32 %cpu, 7
  %index = zext i32 %byte to i64
  %at = getelementptr i8, ptr %new, i64 %index
  %now = load i8, ptr %at
  %low = trunc i32 %bit to i8
  %mask = shl i8 1, %low
  %others = xor i8 %mask, -1
  %kept = and i8 %now, %others
  store i8 %kept, ptr %at
  %r1 = call i32 @sched_setaffinity(i32 0, i64 1024, ptr %new)
  %r2 = call i32 @sched_setaffinity(i32 0, i64 1024, ptr %old)
  br label %end
end:
  ret void
}}
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define internal i32 @start(ptr %pool, ptr %state) nounwind {{
entry:
  %all = alloca [16 x i64], align 8
  %old = alloca [16 x i64], align 8
  call void @llvm.memset.p0.i64(ptr %all, i8 -1, i64 128, i1 false)
  %r0 = call i32 @pthread_sigmask(i32 0, ptr %all, ptr %old)
{_at("threads_at", "pool", THREADS)}
  %threads = load i64, ptr %threads_at
{_at("created", "state", _CREATED)}
{_at("parts", "state", STATE_BYTES + _HANDLE)}
  br label %next
next:
  %t = phi i64 [ 1, %entry ], [ %t1, %made ]
  %enough = icmp uge i64 %t, %threads
  br i1 %enough, label %done, label %make
make:
  %offset = mul i64 %t, {THREAD_BYTES}
  %thread = getelementptr i8, ptr %parts, i64 %offset
  %failed = call i32 @pthread_create(ptr %thread, ptr null, ptr @worker, ptr %pool)
  %good = icmp eq i32 %failed, 0
  br i1 %good, label %made, label %done
made:
  store i64 %t, ptr %created
  %t1 = add i64 %t, 1
  br label %next
done:
  %status = phi i32 [ 1, %next ], [ 2, %make ]
{_at("started", "state", _STARTED)}
  store i32 %status, ptr %started
  %r1 = call i32 @pthread_sigmask(i32 2, ptr %old, ptr null)
  ret i32 %status
}}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""


def _store_job() -> str:
    lines = []
    for k, name in enumerate(_JOB_FIELDS):
        lines += [_at(f"{name}_at", "state", _JOB + 8 * k), f"  store {'i64' if name == 'phases' else 'ptr'} %{name}, ptr %{name}_at"]
    return "\n".join(lines)


_RUN_CODE = f"""
define i32 @{POOL_RUN}(ptr %pool, ptr %share, i64 %phases, ptr %inputs, ptr %outputs, ptr %weights, ptr %arena, ptr %ctx) nounwind {{
entry:
{_at("stopped_at", "pool", STOPPED)}
  %stopped = load atomic i64, ptr %stopped_at acquire, align 8
  %closed = icmp ne i64 %stopped, 0
  br i1 %closed, label %refuse, label %open
open:
{_at("state_at", "pool", STATE)}
  %state = load ptr, ptr %state_at
{_at("busy", "state", _BUSY)}
  %pair = cmpxchg ptr %busy, i32 0, i32 1 acquire monotonic
  %mine = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %mine, label %taken, label %refuse
taken:
{_at("started_at", "state", _STARTED)}
  %started = load i32, ptr %started_at
  %new = icmp eq i32 %started, 0
  br i1 %new, label %first, label %known
first:
  %made = call i32 @start(ptr %pool, ptr %state)
  br label %known
known:
  %status = phi i32 [ %started, %taken ], [ %made, %first ]
  %ready = icmp eq i32 %status, 1
  br i1 %ready, label %go, label %leave
go:
{_store_job()}
{_at("cpu_at", "state", _CPU)}
  %cpu = call i32 @sched_getcpu()
  store i32 %cpu, ptr %cpu_at
{_at("epoch", "state", _EPOCH)}
{_at("parked", "state", _PARKED)}
{_at("base_at", "state", _BASE)}
  %e = load i32, ptr %epoch
  %e1 = add i32 %e, 1
  call void @signal(ptr %epoch, i32 %e1, ptr %parked)
  call void @walk(ptr %pool, i64 0)
  %base = load i32, ptr %base_at
  %count = trunc i64 %phases to i32
  %base1 = add i32 %base, %count
  store i32 %base1, ptr %base_at
  store atomic i32 0, ptr %busy release, align 4
  ret i32 1
leave:
  store atomic i32 0, ptr %busy release, align 4
  br label %refuse
refuse:
  ret i32 0
}}
"""

_STOP_CODE = f"""
define void @{POOL_STOP}(ptr %pool) nounwind {{
entry:
{_at("stopped_at", "pool", STOPPED)}
  store atomic i64 1, ptr %stopped_at release, align 8
{_at("state_at", "pool", STATE)}
  %state = load ptr, ptr %state_at
{_at("busy", "state", _BUSY)}
  %pair = cmpxchg ptr %busy, i32 0, i32 1 acquire monotonic
  %mine = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %mine, label %idle, label %end
idle:
{_at("stop_at", "state", _STOP)}
  store i32 1, ptr %stop_at
{_at("epoch", "state", _EPOCH)}
{_at("parked", "state", _PARKED)}
  %e = load i32, ptr %epoch
  %e1 = add i32 %e, 1
  call void @signal(ptr %epoch, i32 %e1, ptr %parked)
{_at("created_at", "state", _CREATED)}
  %created = load i64, ptr %created_at
{_at("parts", "state", STATE_BYTES + _HANDLE)}
  br label %next
next:
  %t = phi i64 [ 1, %idle ], [ %t1, %join ]
  %all = icmp ugt i64 %t, %created
  br i1 %all, label %end, label %join
join:
  %offset = mul i64 %t, {THREAD_BYTES}
  %thread = getelementptr i8, ptr %parts, i64 %offset
  %id = load i64, ptr %thread
  %r = call i32 @pthread_join(i64 %id, ptr null)
  %t1 = add i64 %t, 1
  br label %next
end:
  ret void
}}
"""
