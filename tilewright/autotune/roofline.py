"""How near kernels are to what the machine can do: why there was little to gain, in numbers.

    ceiling = measure(target, threads)
    ceiling.share(task.work, seconds)      # 1: as fast as arithmetic or data allow, whichever needs more time

The rates are measured in the same run as the kernels, because clocks drift: multiply-adds from registers, and bytes from the
second-level cache and from memory. They are what a core does undisturbed, so kernels count with the least time ever seen. Candidates are
timed with their operands where the run before left them, so a task whose operands fit into that cache is held against its rate (Williams,
Waterman & Patterson 2009, with a roof for each level).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..backends.peak import f32_peak, memory_bandwidth, read_bandwidth
from ..backends.target import Target
from ..compiler.work import Work
from .site import SiteTask

if TYPE_CHECKING:
    from .tuner import TaskState

BURSTS, BURST_SECONDS = 30, 0.002  # the ceiling is what a core does undisturbed: the best of short bursts
LEAST_CACHE = 1 << 20              # bytes; where the size of the second-level cache is not known
LITTLE = 1.05                      # times faster: less counts as little gained


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Of all threads together. flops: a second, in f32. near, far: bytes a second from the second-level cache (of `cache` bytes) and
    from memory."""

    flops: float
    near: float
    far: float
    cache: int

    def rate(self, w: Work) -> float:
        """Bytes a second that the task's operands can come and go with."""
        return self.near if w.bytes <= self.cache else self.far

    def share(self, w: Work, seconds: float) -> float:
        """The least time that arithmetic and data need, over `seconds`. Of integers and narrow floats it may exceed 1."""
        return max(w.flops / self.flops, w.bytes / self.rate(w)) / seconds

    def __str__(self) -> str:
        return (f"{self.flops / 1e9:.0f} GFLOP/s of f32, {self.near / 1e9:.0f} GB/s from the second-level cache, {self.far / 1e9:.0f} GB/s "
                f"from memory")


def measure(target: Target, threads: int) -> Ceiling:
    """About a third of a second, on one thread. The machine must be able to run the target's code."""
    loop, cache = f32_peak(target), target.l2 or LEAST_CACHE
    flops = 1e9 * max(loop.gflops(BURST_SECONDS) for _ in range(BURSTS))
    near, far = (max(memory_bandwidth(n), read_bandwidth(target, n)) for n in (cache // 4, 64 << 20))
    return Ceiling(threads * flops, threads * near, far, cache * threads)


def cells(s: TaskState, ceiling: Ceiling | None) -> tuple[str, str, str]:
    """GFLOP/s, GB/s, share of the roofline; by the default, and where another schedule was found by the best one."""
    if ceiling is None or not s.known or isinstance(s.task, SiteTask):
        return "", "", ""
    least = min(s.least, s.default)
    w, times = s.task.work, [least] if s.best <= 1 else [least, least / s.best]
    return (" -> ".join(f"{w.flops / t / 1e9:.1f}" for t in times), " -> ".join(f"{w.bytes / t / 1e9:.1f}" for t in times),
            " -> ".join(f"{ceiling.share(w, t):.0%}" for t in times))


def sentence(states: Sequence[TaskState], ceiling: Ceiling | None) -> list[str]:
    """What the machine can do, and how near the kernels are where little was gained, weighted by their time."""
    known = [s for s in states if s.known and s.default > 0 and not isinstance(s.task, SiteTask)]
    if ceiling is None or not known:
        return []
    out = [f"the machine does {ceiling}"]
    groups = {
        f"x{LITTLE} or less was gained": [s for s in known if s.best <= LITTLE],
        "more was gained": [s for s in known if s.best > LITTLE]}
    for name, some in groups.items():
        total = sum(s.share for s in some)
        if total:
            before = sum(ceiling.share(s.task.work, min(s.least, s.default)) * s.share for s in some) / total
            after = sum(ceiling.share(s.task.work, min(s.least, s.default) / s.best) * s.share for s in some) / total
            out.append(f"where {name} ({total / sum(s.share for s in known):.0%} of the kernels' time), the compiler's own schedules reach "
                       f"{before:.0%} of the roofline, the best found {after:.0%}")
    return out
