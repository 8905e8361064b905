"""What LLVM says of this machine, remembered: asking loads LLVM, which is 35 MB of memory and most of a short process's start.

The answer is kept in the object cache under everything that it follows from: the processors' own description and the version
of llvmlite. Where the system gives no such description, LLVM is asked each time.
"""
from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cache import ObjectCache, cache_key

# Of /proc/cpuinfo, what LLVM's answer depends on: the identity of a processor and its features, on x86 and on ARM.
_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags",
           "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features")
PATIENCE = 60.0  # seconds for an interpreter to start: what `sys.executable` names may be a program that waits


@dataclass(frozen=True, slots=True)
class Host:
    """triple: of this process. cpu: LLVM's name. features: feature -> whether it is there; empty where LLVM cannot tell."""

    triple: str
    cpu: str
    features: dict[str, bool]


def describe_host(cache: ObjectCache | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> Host:
    """This machine. `cache`: where the answer is kept (default: the user's object cache)."""
    cache = ObjectCache.default() if cache is None else cache
    key = _key(cpuinfo)
    if key is not None and (known := _read(cache.get(key))) is not None:
        return known
    host = _ask()
    if key is not None and host.features:
        cache.put(key, json.dumps([host.triple, host.cpu, host.features]).encode())
    return host


def _key(cpuinfo: Path) -> str | None:
    """None where the system does not describe its processors."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    seen = sorted({line for line in lines if line.partition(":")[0].strip() in _FIELDS})
    if not any(line.startswith(("flags", "Features")) for line in seen):
        return None
    import llvmlite
    return cache_key("host", llvmlite.__version__, platform.machine(), *seen)


def _read(payload: bytes | None) -> Host | None:
    if payload is None:
        return None
    try:
        triple, cpu, features = json.loads(payload)
    except (ValueError, TypeError):  # no such three things
        return None
    return Host(triple, cpu, features)


def _ask() -> Host:
    """What LLVM says: in a process of its own where this one does without LLVM so far."""
    from .llvm import worker
    line = [] if worker.llvm_is_loaded() else worker.command("--host")
    if line:
        try:
            run = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
                                 timeout=PATIENCE)
            if (found := _read(run.stdout)) is not None:
                return found
        except (OSError, subprocess.SubprocessError):  # this process may ask as well
            pass
    return Host(*worker.host())
