"""Work stealing as LLVM IR: who takes which part of a call that several threads share.

    { i64 begin, i64 end } tw_take(deal, seq, round, me, team, pieces, cuts, trips)     // begin < 0: nothing is left

Each thread has a share of [0, trips), from cuts[t] to cuts[t + 1] (NULL: even shares), of `pieces` pieces. It takes most of what
is left of its own from the front, and then, a half at a time, from the back of what others have not begun: cores of a shared machine are
not equally fast, and one may be away for a while. What is left of thread t's share is one word:

    deal[t] = seq << 32 | lo << 16 | hi             pieces lo .. hi - 1 of call number seq

A word of an earlier call with nothing left stands for a share that nobody has touched, so a share can be taken from a thread
that has not come yet. The numbers of calls wrap around and are compared by their difference; every thread brings its own word up to
date when a job begins, so that none is older than a job. `deal` NULL (a pool of the caller's): thread `me` takes its share in
round 0, and nothing after it.

After R. Blumofe and C. Leiserson, "Scheduling multithreaded computations by work stealing", 1999; shares are ranges, so a
compare-and-swap of one word does for both ends.
"""
from __future__ import annotations

from ..plan import MOST_PIECES
from .team import DEAL_CALLS, THREAD_BYTES

TAKE = "tw_take"
assert MOST_PIECES < 1 << 16


def sequence(turn: str, index: int) -> str | None:
    """The number of the call at position `index` of the phase whose number is `turn`, as an expression of IR; None: there are
    too many calls for numbers, so that it is not shared out."""
    return f"or i32 {turn}, {index + 1}" if index + 1 < DEAL_CALLS else None


def emit_take() -> str:
    """LLVM IR text of `tw_take`."""
    arguments = "ptr %deal, i32 %seq, i64 %round, i64 %me, i64 %team, i64 %pieces, ptr %cuts, i64 %trips"
    return f"""
define internal {{ i64, i64 }} @{TAKE}({arguments}) noinline nounwind {{
entry:
  %high = zext i32 %seq to i64
  %tag = shl i64 %high, 32
  %fixed = icmp eq ptr %deal, null
  br i1 %fixed, label %alone, label %victim
alone:
  %again = icmp ne i64 %round, 0
  br i1 %again, label %none, label %part
victim:
  %k = phi i64 [ 0, %entry ], [ %k1, %missed ], [ 0, %empty ]
  %own = icmp eq i64 %k, 0
  %sum = add i64 %me, %k
  %over = icmp uge i64 %sum, %team
  %back = sub i64 %sum, %team
  %t = select i1 %over, i64 %back, i64 %sum
  %offset = mul i64 %t, {THREAD_BYTES}
  %at = getelementptr i8, ptr %deal, i64 %offset
  %first = load atomic i64, ptr %at acquire, align 8
  br label %look
look:
  %w = phi i64 [ %first, %victim ], [ %now, %swap ]
  %wide = lshr i64 %w, 32
  %s = trunc i64 %wide to i32
  %low = lshr i64 %w, 16
  %lo0 = and i64 %low, 65535
  %hi0 = and i64 %w, 65535
  %same = icmp eq i32 %s, %seq
  %ahead = sub i32 %s, %seq
  %earlier = icmp slt i32 %ahead, 0
  %done = icmp eq i64 %lo0, %hi0
  %fresh = and i1 %earlier, %done
  %lo = select i1 %fresh, i64 0, i64 %lo0
  %hi = select i1 %fresh, i64 %pieces, i64 %hi0
  %left = sub i64 %hi, %lo
  %some = icmp ne i64 %left, 0
  %ours = or i1 %same, %fresh
  %usable = and i1 %ours, %some
  br i1 %usable, label %swap, label %missed
swap:
  %left1 = add i64 %left, 1
  %half = lshr i64 %left1, 1
  %thrice = mul i64 %left, 3
  %thrice1 = add i64 %thrice, 3
  %most = lshr i64 %thrice1, 2
  %n = select i1 %own, i64 %most, i64 %half
  %front = add i64 %lo, %n
  %rear = sub i64 %hi, %n
  %lo1 = select i1 %own, i64 %front, i64 %lo
  %hi1 = select i1 %own, i64 %hi, i64 %rear
  %from = select i1 %own, i64 %lo, i64 %rear
  %to = select i1 %own, i64 %front, i64 %hi
  %shifted = shl i64 %lo1, 16
  %ends = or i64 %shifted, %hi1
  %new = or i64 %tag, %ends
  %pair = cmpxchg ptr %at, i64 %w, i64 %new acq_rel acquire, align 8
  %now = extractvalue {{ i64, i1 }} %pair, 0
  %won = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %won, label %part, label %look
missed:
  %k1 = add i64 %k, 1
  %all = icmp eq i64 %k1, %team
  br i1 %all, label %none, label %victim
part:
  %who = phi i64 [ %me, %alone ], [ %t, %swap ]
  %p0 = phi i64 [ 0, %alone ], [ %from, %swap ]
  %p1 = phi i64 [ %pieces, %alone ], [ %to, %swap ]
  %next = add i64 %who, 1
  %even = icmp eq ptr %cuts, null
  br i1 %even, label %evenly, label %cut
evenly:
  %a0 = mul i64 %who, %trips
  %a = udiv i64 %a0, %team
  %b0 = mul i64 %next, %trips
  %b = udiv i64 %b0, %team
  br label %bounds
cut:
  %c_at = getelementptr i64, ptr %cuts, i64 %who
  %c = load i64, ptr %c_at
  %d_at = getelementptr i64, ptr %cuts, i64 %next
  %d = load i64, ptr %d_at
  br label %bounds
bounds:
  %x = phi i64 [ %a, %evenly ], [ %c, %cut ]
  %y = phi i64 [ %b, %evenly ], [ %d, %cut ]
  %size = sub i64 %y, %x
  %e0 = mul i64 %size, %p0
  %e1 = udiv i64 %e0, %pieces
  %begin = add i64 %x, %e1
  %f0 = mul i64 %size, %p1
  %f1 = udiv i64 %f0, %pieces
  %end = add i64 %x, %f1
  %nothing = icmp eq i64 %begin, %end
  br i1 %nothing, label %empty, label %give
empty:
  br i1 %fixed, label %none, label %victim
give:
  %r0 = insertvalue {{ i64, i64 }} undef, i64 %begin, 0
  %r1 = insertvalue {{ i64, i64 }} %r0, i64 %end, 1
  ret {{ i64, i64 }} %r1
none:
  ret {{ i64, i64 }} {{ i64 -1, i64 -1 }}
}}
"""
