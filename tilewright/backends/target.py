"""Targets as data: what the code generator, the schedules and the cache must know about a processor.

>>> Target.parse("x86-64-v3").vector_bytes
32
"""
from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

from ..errors import TargetError
from .host import describe_host

_X86_BASE = ("cmov", "cx8", "fxsr", "mmx", "sse", "sse2")
_X86_V2 = (*_X86_BASE, "cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_X86_V3 = (*_X86_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_X86_V4 = (*_X86_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_LEVELS = {"x86-64": _X86_BASE, "x86-64-v2": _X86_V2, "x86-64-v3": _X86_V3, "x86-64-v4": _X86_V4}

# Features that may follow a base name after "+", with what LLVM switches on along with them.
_X86_EXTRAS: dict[str, tuple[str, ...]] = {
    "sse3": (), "ssse3": ("sse3",), "sse4.1": ("ssse3",), "sse4.2": ("sse4.1",), "avx": ("sse4.2",), "avx2": ("avx",),
    "fma": ("avx",), "f16c": ("avx",), "bmi": (), "bmi2": (), "popcnt": (), "lzcnt": (), "movbe": (), "gfni": (),
    "avx512f": ("avx2", "fma", "f16c"), "avx512cd": ("avx512f",), "avx512bw": ("avx512f",), "avx512dq": ("avx512f",),
    "avx512vl": ("avx512f",), "avx512vnni": ("avx512f",), "avx512bf16": ("avx512bw",), "avx512fp16": ("avx512bw", "avx512vl"),
    "avx512ifma": ("avx512f",), "avx512vbmi": ("avx512bw",), "avx512vbmi2": ("avx512bw",), "avx512bitalg": ("avx512bw",),
    "avx512vpopcntdq": ("avx512f",), "avxvnni": ("avx2",), "amx-tile": (), "amx-int8": ("amx-tile",), "amx-bf16": ("amx-tile",),
}
_ARM_EXTRAS: dict[str, tuple[str, ...]] = {
    "fp-armv8": (), "neon": ("fp-armv8",), "dotprod": ("neon",), "fullfp16": ("neon",), "fp16fml": ("fullfp16",),
    "bf16": ("neon",), "i8mm": ("neon",), "lse": (), "rdm": ("neon",), "crc": (),
}
_TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of processor.

    name:        what `parse` accepts; equal names are equal targets ("native": on one machine).
    triple, cpu, features: LLVM's; features is "+a,-b,…" and complete, so that nothing depends on LLVM's own tables.
    vector_bytes, vector_registers: of the widest registers that are used.
    has_fma:     fused multiply-add in hardware. has_masks: lane masks in registers of their own (AVX-512).
    f16c:        converts between f16 and f32 in hardware.
    l1d, l2, l3: bytes of data cache one core sees (0: none). cores: usable at once, by affinity and cgroup.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    vector_registers: int
    has_fma: bool
    has_masks: bool
    f16c: bool
    l1d: int = 32 << 10
    l2: int = 1 << 20
    l3: int = 16 << 20
    cores: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def arch(self) -> str:
        """"x86_64" or "aarch64"."""
        return _arch(self.triple)

    def has(self, feature: str) -> bool:
        """Whether LLVM's `feature` ("avx512vnni", "dotprod") is switched on."""
        return f"+{feature}" in self.features.split(",")

    def code_key(self) -> str:
        """What machine code depends on, once the IR is given: part of the cache's keys."""
        return f"{self.triple}|{self.cpu}|{self.features}"

    def to_json(self) -> dict[str, str | int | bool]:
        return asdict(self)

    @staticmethod
    def from_json(data: object) -> Target:
        """Inverse of `to_json`; raises TargetError for anything else."""
        kinds = {f.name: {"str": str, "int": int, "bool": bool}[str(f.type)] for f in fields(Target)}
        if not isinstance(data, dict) or data.keys() != kinds.keys() or any(type(data[k]) is not t for k, t in kinds.items()):
            raise TargetError("not a description of a target")
        return Target(**data)

    @staticmethod
    def host() -> Target:
        """This machine, as LLVM, sysfs and the scheduler describe it; what cannot be read has a common value."""
        return _host()

    @staticmethod
    def parse(text: str) -> Target:
        """A target by name: "native", or a base and features ("x86-64-v3+avx512f", "aarch64+dotprod").

        Raises TargetError, listing what is known. Names mean the same on every machine, except for "native".
        """
        base, *extras = text.strip().split("+")
        if base == "native" and not extras:
            return Target.host()
        if base in _LEVELS:
            return _describe(text.strip(), "x86_64", base, _closure(text, _LEVELS[base], extras, _X86_EXTRAS))
        if base == "aarch64":
            return _describe(text.strip(), "aarch64", "generic", _closure(text, ("fp-armv8", "neon"), extras, _ARM_EXTRAS))
        raise TargetError(f"unknown target {text!r}; known are {', '.join(known_targets())}, each but native with +feature")


def known_targets() -> tuple[str, ...]:
    """The base names that `Target.parse` accepts."""
    return ("native", *_LEVELS, "aarch64")


def known_features(arch: str) -> tuple[str, ...]:
    """The features that may follow a base name of `arch` after "+"."""
    return tuple(sorted(_X86_EXTRAS if arch == "x86_64" else _ARM_EXTRAS))


def runs_here(target: Target) -> bool:
    """Whether this machine can run code for `target`."""
    host = Target.host()
    if (_arch(target.triple), _system(target.triple)) != (_arch(host.triple), _system(host.triple)):
        return False
    return _enabled(target.features) <= _enabled(host.features)


def missing_features(target: Target) -> tuple[str, ...]:
    """The features of `target` that this machine lacks, for messages."""
    return tuple(sorted(_enabled(target.features) - _enabled(Target.host().features)))


def _closure(text: str, base: tuple[str, ...], extras: list[str], known: dict[str, tuple[str, ...]]) -> set[str]:
    found, todo = set(base), list(extras)
    while todo:
        f = todo.pop()
        if f in base:
            continue
        if f not in known:
            raise TargetError(f"unknown feature {f!r} in target {text!r}; known are {', '.join(sorted(known))}")
        found.add(f)
        todo += [x for x in known[f] if x not in found]
    return found


def _describe(name: str, arch: str, cpu: str, features: set[str], triple: str = "", feature_text: str = "") -> Target:
    """The Target whose numbers follow from its architecture and features."""
    triple = triple or _TRIPLES[arch]
    text = feature_text or ",".join(f"+{f}" for f in sorted(features))
    if arch == "aarch64":
        return Target(name, triple, cpu, text, 16, 32, has_fma=True, has_masks=False, f16c=True)
    wide = "avx512f" in features
    return Target(name, triple, cpu, text, 64 if wide else 32 if "avx2" in features else 16, 32 if wide else 16,
                  has_fma="fma" in features, has_masks=wide, f16c="f16c" in features)


@cache
def _host() -> Target:
    host = describe_host()
    triple, features = host.triple, dict(host.features)
    arch = _arch(triple)
    if arch not in _TRIPLES:
        raise TargetError(f"this machine is {triple}; tilewright runs on x86-64 and aarch64")
    baseline = _X86_BASE if arch == "x86_64" else ("fp-armv8", "neon")
    if not features:  # the architecture's baseline is safe
        found = _describe("native", arch, "x86-64" if arch == "x86_64" else "generic", set(baseline), triple)
    else:
        features |= dict.fromkeys(baseline, True)
        text = ",".join(("+" if on else "-") + f for f, on in sorted(features.items()))
        found = _describe("native", arch, host.cpu, {f for f, on in features.items() if on}, triple, text)
    return replace(found, **_cache_sizes(Path("/sys/devices/system/cpu/cpu0/cache")), cores=usable_cores())


def _cache_sizes(folder: Path) -> dict[str, int]:
    """{"l1d": bytes, …} for the levels that sysfs tells; empty elsewhere than on Linux."""
    out: dict[str, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / f).read_text().strip() for f in ("level", "type", "size"))
            key = "l1d" if level == "1" else f"l{level}"
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:], 1)
            if kind != "Instruction" and key in ("l1d", "l2", "l3"):
                out[key] = int(size.rstrip("KMG")) * unit
        except (OSError, ValueError):
            continue
    return out


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """How many threads can run at once: the affinity mask, cut by the cgroup's CPU quota (v1 or v2), at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    for quota, period in _quotas(cgroup, own):
        if quota > 0 and period > 0:
            cores = min(cores, max(1, -(-quota // period)))
    return max(1, cores)


def _quotas(cgroup: Path, own: Path) -> list[tuple[int, int]]:
    """(quota, period) in microseconds of this process's cgroup and those above it, where they are limited."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    found = []
    for line in [*lines, "0::/"]:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers not in ("", "cpu", "cpu,cpuacct"):
            continue
        top = cgroup / controllers if controllers else cgroup
        here = top / path.strip("/")
        for folder in (here, *here.parents):
            found.append(_read_quota(folder))
            if folder == top:
                break
    return [q for q in found if q]


def _read_quota(folder: Path) -> tuple[int, int] | None:
    try:
        if (v2 := folder / "cpu.max").exists():
            quota, period = v2.read_text().split()
            return None if quota == "max" else (int(quota), int(period))
        return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def _arch(triple: str) -> str:
    arch = triple.split("-")[0]
    return {"arm64": "aarch64", "amd64": "x86_64", "": platform.machine()}.get(arch, arch)


def _system(triple: str) -> str:
    return next((s for s in ("linux", "darwin", "windows") if s in triple), "")


def _enabled(features: str) -> set[str]:
    return {f[1:] for f in features.split(",") if f.startswith("+")}
