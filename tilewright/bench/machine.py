"""What a measurement was made on."""
from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from ..backends.target import Target
from ..version import __version__
from .engines import ENGINES

Description = dict[str, str | int | float | list[float] | dict[str, str]]


def describe(engines: Sequence[str]) -> Description:
    """CPU, features, cores, caches (bytes), memory (bytes), versions of what takes part, load average, time (UTC)."""
    host = Target.host()
    enabled = sorted(f[1:] for f in host.features.split(",") if f.startswith("+"))
    return {
        "cpu": cpu_model(), "llvm_cpu": host.cpu, "arch": host.arch, "features": " ".join(enabled), "cores": host.cores,
        "l1d": host.l1d, "l2": host.l2, "l3": host.l3, "memory": _memory(), "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(), "tilewright": __version__, "load": [round(x, 2) for x in os.getloadavg()],
        "engines": {e: ENGINES[e].version if not ENGINES[e].missing else "absent" for e in engines},
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name for itself, or its architecture where the system does not tell."""
    try:
        for line in path.read_text().splitlines():
            if line.lower().startswith(("model name", "cpu model", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
