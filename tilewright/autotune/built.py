"""A candidate's code as a builder hands it to a runner."""
from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from ..ir.loops import Pack
from .wire import Header

DRIVE = "tw_drive"  # the function to call: `builder.py` says how


@dataclass(frozen=True, slots=True)
class Built:
    """objects: relocatable. workspace: bytes. packs: inputs that the kernel reads laid out. team: threads that take part."""

    objects: tuple[bytes, ...]
    workspace: int
    packs: tuple[Pack, ...]
    team: int = 1

    def header(self) -> Header:
        return {"workspace": self.workspace, "team": self.team,
                "packs": [[p.buffer, list(p.padded), list(p.split), list(p.perm), list(p.shape)] for p in self.packs]}

    @staticmethod
    def of(header: Header, objects: list[bytes]) -> Built:
        packs = tuple(Pack(str(name), *(tuple(x) for x in rest)) for name, *rest in cast("list[list]", header["packs"]))
        return Built(tuple(objects), cast(int, header["workspace"]), packs, cast(int, header["team"]))
