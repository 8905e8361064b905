"""The most multiply-adds one core does in a second: the ceiling that kernels are compared with.

    python -m benchmarks.peak
"""
from __future__ import annotations

import numpy as np

from tilewright.backends.peak import f32_peak, memory_bandwidth
from tilewright.backends.target import Target

__all__ = ["f32_peak", "main"]


def main() -> None:
    target = Target.host()
    loop = f32_peak(target)
    samples = [loop.gflops() for _ in range(9)]
    print(f"f32 multiply-add peak of one core of {target.cpu}: median {np.median(samples):.1f} GFLOP/s, best {max(samples):.1f}")
    print(f"reading or copying 64 MiB: {memory_bandwidth() / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
