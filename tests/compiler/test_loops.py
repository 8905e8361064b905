"""Loops of the plan: recurrent layers and Scan as one loop around the kernels of a step, on one thread and on several."""
from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tests.compiler.plan_interpreter import run_plan
from tests.ir.op_graphs import random_schedules
from tilewright.backends.executable import Executable
from tilewright.backends.plan import KernelCall, Loop, Plan, PlanError, Slot
from tilewright.backends.saved import load
from tilewright.compiler import threads as thread_rules
from tilewright.compiler.passes.loop_bodies import unrolled
from tilewright.compiler.threads import Touch, phases
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_graph
from tilewright.ir.op import OPS
from tilewright.ir.ops.loop import ScanAttrs
from tilewright.ir.text import parse_graph, print_graph
from tilewright.ir.types import F32, TensorType, dtype_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(op: str, steps: int, batch: int, size: int, hidden: int, lengths: bool = False, states: bool = True, seed: int = 0,
          **attrs: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one recurrent layer and its inputs; weights are initializers."""
    rng = np.random.default_rng(seed)
    n = 2 if attrs.get("direction") == "bidirectional" else 1

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
    first = bool(attrs.get("layout"))
    state = (batch, n, hidden) if first else (n, batch, hidden)
    inputs = {"x": draw(batch, steps, size) if first else draw(steps, batch, size)}
    weights = {"w": draw(n, GATES[op] * hidden, size), "r": draw(n, GATES[op] * hidden, hidden), "b": draw(n, 2 * GATES[op] * hidden)}
    names = ["x", "w", "r", "b", "", "", "", ""]
    if lengths:
        inputs["lengths"] = np.maximum(rng.permutation(batch) % (steps + 1), 1).astype(np.int32)
        names[4] = "lengths"
    for k, name in ((5, "h0"), (6, "c0")) if states else ():
        if k == 5 or op == "LSTM":
            inputs[name] = draw(*state)
            names[k] = name
    if op == "LSTM" and seed % 2:
        weights["p"] = draw(n, 3 * hidden)
        names[7] = "p"
    outputs = ["y", "y_h", *(["y_c"] if op == "LSTM" else [])]
    graph = helper.make_graph(
        [helper.make_node(op, names[:8 if op == "LSTM" else 6], outputs, hidden_size=hidden, **attrs)], op.lower(),
        [helper.make_tensor_value_info(k, TensorProto.INT32 if k == "lengths" else TensorProto.FLOAT, a.shape) for k, a in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs],
        [numpy_helper.from_array(a, k) for k, a in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), inputs


def run(exe: Executable, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    results = exe(*inputs.values())
    assert isinstance(results, tuple)
    return [np.asarray(a) for a in results]


def runtime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(a) for a in ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that has several trips is divided among threads, however small."""
    monkeypatch.setattr(thread_rules, "SHARE_SECONDS", 1e-12)
    monkeypatch.setattr(thread_rules, "PLAN_SECONDS", 0.0)


CASES = [
    ("LSTM", 7, 1, 19, 37, {}), ("LSTM", 5, 3, 11, 23, {"direction": "bidirectional", "lengths": True}),
    ("LSTM", 6, 2, 8, 16, {"direction": "reverse", "seed": 1, "clip": 0.4}), ("LSTM", 4, 2, 5, 7, {"seed": 3, "input_forget": 1}),
    ("LSTM", 3, 2, 5, 6, {"activations": ["HardSigmoid", "Softsign", "Relu"], "states": False}),
    ("GRU", 6, 2, 13, 29, {"linear_before_reset": 1}), ("GRU", 5, 4, 7, 31, {"direction": "bidirectional", "lengths": True}),
    ("GRU", 3, 1, 3, 5, {"direction": "reverse", "linear_before_reset": 1, "lengths": True}), ("GRU", 2, 2, 3, 64, {"states": False}),
    ("RNN", 9, 2, 5, 17, {"direction": "bidirectional", "lengths": True}), ("RNN", 3, 1, 4, 1, {"activations": ["Relu"]}),
    ("LSTM", 1, 2, 5, 7, {}), ("GRU", 1, 1, 5, 7, {"lengths": True})]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{'-'.join(map(str, c[1:5]))}")
@pytest.mark.usefixtures("eager")
def test_layers_agree_with_onnx_runtime_on_any_number_of_threads(case: tuple[str, int, int, int, int, dict[str, Any]]) -> None:
    op, steps, batch, size, hidden, attrs = case
    model, inputs = layer(op, steps, batch, size, hidden, **attrs)
    want = runtime(model, inputs)
    results = []
    for threads in (1, 2, 3):
        exe = tw.compile(model, threads=threads)
        plan = exe.instances()[0].plan
        assert len(plan.loops) == (len(want[1]) if steps > 1 else 0)
        results.append(run(exe, inputs))
        for got, w in zip(results[-1], want, strict=True):
            np.testing.assert_allclose(got, w, rtol=2e-5, atol=2e-6)
    for r in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(r, results[0], strict=True)), "threads changed bits"


@pytest.mark.parametrize("seed", range(4))
def test_layers_under_random_schedules(seed: int) -> None:
    model, inputs = layer(("LSTM", "GRU")[seed % 2], 4, 1 + seed, 9, 21, lengths=seed > 1, direction="bidirectional")
    with random_schedules(seed):
        got = run(tw.compile(model), inputs)
    for g, w in zip(got, runtime(model, inputs), strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-6)


def test_rows_first_layout_is_the_same_layer_transposed() -> None:
    swap = {"x", "y", "h0", "c0", "y_h", "y_c"}
    for op in GATES:
        model, inputs = layer(op, 5, 3, 7, 9, direction="bidirectional")
        rows, _ = layer(op, 5, 3, 7, 9, direction="bidirectional", layout=1)
        for t in ("w", "r", "b"):
            want = next(i for i in model.graph.initializer if i.name == t)
            next(i for i in rows.graph.initializer if i.name == t).CopyFrom(want)
        turned = {k: np.ascontiguousarray(a.swapaxes(0, 1)) if k in swap else a for k, a in inputs.items()}
        y, *states = run(tw.compile(rows), turned)
        want_y, *want_states = run(tw.compile(model), inputs)
        np.testing.assert_allclose(y, want_y.transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
        for s, w in zip(states, want_states, strict=True):
            np.testing.assert_allclose(s, w.swapaxes(0, 1), rtol=1e-5, atol=1e-6)


def test_code_and_plan_do_not_grow_with_the_number_of_steps() -> None:
    small, large = (tw.compile(layer("LSTM", steps, 2, 8, 24)[0], threads=1).instances()[0] for steps in (100, 1000))
    assert len(small.plan.calls) == len(large.plan.calls)
    assert abs(small.image.blobs["text"].size - large.image.blobs["text"].size) < 1024
    assert [x.trips for x in large.plan.loops] == [1000]


@pytest.mark.usefixtures("eager")
def test_threads_meet_in_every_step_of_a_divided_loop() -> None:
    plan = tw.compile(layer("LSTM", 50, 4, 8, 64)[0], threads=2).instances()[0].plan
    loop, = plan.loops
    inside = sum(loop.first <= p < loop.last for p in plan.phases)
    assert plan.divided(loop) and inside >= 2
    assert plan.meetings == len(plan.phases) + 49 * inside


def test_saved_and_loaded_and_updated(tmp_path: Path) -> None:
    model, inputs = layer("LSTM", 6, 2, 9, 13, direction="bidirectional")
    exe = tw.compile(model)
    exe.save(tmp_path / "m.twx")
    again = load(tmp_path / "m.twx")
    for a, b in zip(run(again, inputs), run(exe, inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    other, _ = layer("LSTM", 6, 2, 9, 13, direction="bidirectional", seed=4)
    again.update_weights({t.name: numpy_helper.to_array(t) for t in other.graph.initializer})
    for a, w in zip(run(again, inputs), runtime(other, inputs), strict=True):
        np.testing.assert_allclose(a, w, rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("eager")
def test_exported_code_runs_alone_and_on_threads_of_its_caller(tmp_path: Path) -> None:
    model, inputs = layer("GRU", 9, 3, 8, 40, linear_before_reset=1)
    exe = tw.compile(model, threads=2)
    exe.export(tmp_path / "m.so")
    lib = ctypes.CDLL(str(tmp_path / "m.so"))
    lib.m_workspace_bytes.restype = ctypes.c_size_t
    workspace = ctypes.create_string_buffer(lib.m_workspace_bytes())
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
    asked = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def parallel_for(context: int | None, n: int, task: int, argument: int) -> None:
        asked.append(n)
        for i in reversed(range(n)):
            task_type(task)(argument, i)
    want = run(exe, inputs)
    for name, more in (("m_run", ()), ("m_run_parallel", (2, parallel_for, None))):
        outs = [np.empty_like(w) for w in want]
        arrays = [a.ctypes.data_as(ctypes.c_void_p) for a in (*inputs.values(), *outs)]
        assert getattr(lib, name)(*arrays, workspace, *more) == 0
        assert all(np.array_equal(a, b) for a, b in zip(outs, want, strict=True)), name
    assert len(asked) == exe.instances()[0].plan.meetings


def test_profile_and_explain_show_the_loop() -> None:
    model, inputs = layer("LSTM", 40, 1, 16, 32)
    exe = tw.compile(model, threads=1)
    p = exe.profile(inputs, 0.05)
    step = next(c for c in p.calls if c.label.startswith("matmul") and c.flops == 40 * (2 * 32 * 128 + 128))
    assert step.seconds > 0
    text = str(exe.explain())
    assert "40 x" in text and "40 steps of" in text


# -- the op and its passes ---------------------------------------------------------------------------------------------
def scan_graph() -> tuple[Graph, dict[str, np.ndarray]]:
    b, arrays, outs = GraphBuilder("scans"), {}, []
    for k, s in enumerate(OPS["scan"].samples()):
        assert isinstance(s.attrs, ScanAttrs)
        ins = []
        for i, a in enumerate(s.inputs):
            assert a is not None
            arrays[f"x{k}.{i}"] = a
            ins.append(b.input(f"x{k}.{i}", TensorType(dtype_of(a.dtype), a.shape)))
        outs += b.emit("scan", ins, s.attrs)
    return b.graph(outs), arrays


def test_placements_of_loops_in_the_plan() -> None:
    g, arrays = scan_graph()
    g = g.replace(nodes=[n for n in g.nodes if isinstance(n.attrs, ScanAttrs) and n.attrs.steps > 1])
    made = {v.name for n in g.nodes for v in n.outputs}
    g = g.replace(outputs=tuple(v for v in g.outputs if v.name in made))
    want = run_graph(g, arrays)
    for v, got in zip(g.outputs, run_plan(g, arrays), strict=True):
        np.testing.assert_allclose(got, want[v.name], rtol=1e-5, atol=1e-6)


def test_loops_round_trip_as_text_and_unroll_to_the_same() -> None:
    g, arrays = scan_graph()
    assert parse_graph(print_graph(g)) == g
    flat = unrolled(g)
    assert not any(n.op == "scan" for n in flat.nodes)
    want, got = run_graph(g, arrays), run_graph(flat, arrays)
    for a, b in zip(g.outputs, flat.outputs, strict=True):
        np.testing.assert_allclose(got[b.name], want[a.name], rtol=1e-6, atol=1e-6)


def test_what_does_not_change_is_computed_once() -> None:
    """The transposed weights of a loop's body belong to the preparation, and results that nobody reads are not stored."""
    model, _ = layer("LSTM", 12, 1, 8, 16)
    del model.graph.output[0]
    i = tw.compile(model).instances()[0]
    loop, = i.plan.loops
    assert [c.label for c in i.plan.calls[loop.first:loop.last] if "transpose" in c.label or c.label == "copy"] == []


# -- the plan ------------------------------------------------------------------------------------------------------------
def call(team: int = 1) -> KernelCall:
    return KernelCall("k", (Slot("arena", 0, 0, 64), Slot("input", 0, 640, -64)), 8, team=team)


def plan_of(calls: tuple[KernelCall, ...], loops: tuple[Loop, ...], phases: tuple[int, ...] = (), arena: int = 1024) -> Plan:
    t = TensorType(F32, (1024,))
    return Plan((("x", t),), (("y", t),), (), arena, calls, phases, loops)


def test_plans_with_loops_are_checked_and_round_trip() -> None:
    good = plan_of((call(), call(2), call()), (Loop(1, 2, 10),), (0, 1, 2))
    assert Plan.from_json(good.to_json()) == good
    assert good.times == (1, 10, 1) and good.meetings == 12
    assert Plan.from_json(plan_of(good.calls, (Loop(1, 2, 11),)).to_json()).loops  # 640 - 64 * 10 is still inside
    bad = [plan_of(good.calls, (Loop(1, 2, 12),)), plan_of(good.calls, (Loop(0, 1, 10),), arena=512), plan_of(good.calls, (Loop(1, 1, 3),)),
           plan_of(good.calls, (Loop(0, 2, 3), Loop(1, 3, 3))), plan_of(good.calls, (Loop(0, 4, 3),)),
           plan_of(good.calls, (Loop(0, 1, 0),)), plan_of(good.calls, (Loop(1, 2, 3),), (0, 1)),
           plan_of((call(2), call(), call()), (Loop(1, 3, 3),), (0, 2))]
    for p in bad:
        with pytest.raises(PlanError):
            Plan.from_json(p.to_json())


def test_phases_around_loops() -> None:
    def touch(place: int, writes: bool) -> Touch:
        return Touch(("arena", place), 0, 64, writes)
    chain = [[touch(0, True)], [touch(0, False), touch(1, True)], [touch(1, False), touch(0, True)], [touch(0, False)]]
    assert phases(chain, (1, 1, 1, 1), (Loop(1, 3, 5),)) == ()
    assert phases(chain, (1, 2, 1, 1), (Loop(1, 3, 5),)) == (0, 1, 2, 3)
    assert phases(chain, (2, 1, 1, 1), (Loop(1, 3, 5),)) == (0, 1)      # one thread runs the loop and what follows
    late = [[touch(2, True)], [touch(1, True)], [touch(2, False)], []]
    assert phases(late, (2, 1, 1, 1), (Loop(1, 3, 5),)) == (0, 1)       # before the loop, not in the middle of it
    apart = [[touch(2, True)], [touch(1, True)], [touch(3, False)], []]
    assert phases(apart, (2, 1, 2, 2), (Loop(2, 3, 5),)) == (0, 2, 3)
