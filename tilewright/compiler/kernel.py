"""What lowering produces: kernels, each one call at run time, with their arguments and the loops around them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.graph import Node
from ..ir.program import Program
from .views import Storage, Views


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument of a kernel: element `offset` of a storage; in a loop, `step` elements further in each step."""

    storage: str
    offset: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class LoopRun:
    """A loop around consecutive kernels, `trips` times. `storages`: arena storages of its body, whose values do not outlive
    a step. `why`: how the body was cut into groups."""

    id: int
    trips: int
    storages: tuple[Storage, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One call at run time: `program` over the memory at `inputs` and `outputs` (in the order of the program's), or the
    code of `node`, an irregular op, where there is no program. `group` is the position in the partition, -1 for final copies. `loop`:
    the loop that it is in. `border`: it fills what surrounds a padded value, which no other kernel writes."""

    program: Program | None
    node: Node | None
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    label: str
    group: int = -1
    loop: LoopRun | None = None
    border: bool = False

    @property
    def times(self) -> int:
        """How often it runs in one call."""
        return self.loop.trips if self.loop else 1


def with_loops(views: Views, kernels: Sequence[Kernel]) -> Views:
    """`views` with the storages that bodies of loops have of their own."""
    own = {s.id: s for k in kernels if k.loop for s in k.loop.storages}
    return replace(views, storages={**views.storages, **own}) if own else views
