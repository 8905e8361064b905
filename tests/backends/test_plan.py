"""Plans survive JSON; text that is no plan is refused with one clear error."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tilewright.backends.plan import KernelCall, Plan, PlanError, Slot
from tilewright.ir.types import F32, TensorType

X, Y = TensorType(F32, (8, 64)), TensorType(F32, ())
PLAN = Plan((("x", X),), (("y", Y),), (("w", X),), 128, (
    KernelCall("k0", (Slot("input"), Slot("weight"), Slot("arena", 0, 64)), 7, Slot("arena", 0, 0), "matmul"),
    KernelCall("n0_topk", (Slot("arena", 0, 64), Slot("output")), label="topk_1", reads=(0,))))


def test_round_trip() -> None:
    assert Plan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN
    assert PLAN.symbols == ("k0", "n0_topk")


def test_fills() -> None:
    fill = KernelCall("z", (Slot("arena", 0, 64),), 2, None, "pad border")
    plan = replace(PLAN, fills=(fill,))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan and plan.symbols == ("k0", "n0_topk", "z")
    for slot in (Slot("arena", 0, 129), Slot("output")):
        with pytest.raises(PlanError):
            Plan.from_json(replace(PLAN, fills=(replace(fill, args=(slot,)),)).to_json())
    calls = PLAN.to_json()["calls"]
    with pytest.raises(PlanError):
        Plan.from_json({**PLAN.to_json(), "fills": calls})  # they write what is no arena


def test_cuts() -> None:
    call = replace(PLAN.calls[0], team=3, cuts=(2, 4))
    plan = replace(PLAN, calls=(call, PLAN.calls[1]))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for cuts in ((2,), (4, 2), (2, 8), (-1, 2), (1, 2, 3)):
        with pytest.raises(PlanError):
            Plan.from_json(replace(PLAN, calls=(replace(call, cuts=cuts), PLAN.calls[1])).to_json())


def _changed(path: tuple[str | int, ...], value: object) -> object:
    data = json.loads(json.dumps(PLAN.to_json()))
    at = data
    for p in path[:-1]:
        at = at[p]
    at[path[-1]] = value
    return data


@pytest.mark.parametrize("data", [
    None, [], {}, "x", _changed(("inputs",), 3), _changed(("inputs", 0), ["x"]), _changed(("inputs", 0, 1, 0), "f31"),
    _changed(("inputs", 0, 1, 1), [-1]), _changed(("calls", 0, "args", 0, 1), 1), _changed(("calls", 0, "args", 0, 0), "stack"),
    _changed(("calls", 0, "args", 2, 2), 129), _changed(("calls", 0, "symbol"), "a b"), _changed(("calls", 0, "trips"), "7"),
    _changed(("calls", 0, "workspace"), ["arena", 0, -64]), _changed(("arena_bytes",), True)])
def test_damaged(data: object) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(data)
