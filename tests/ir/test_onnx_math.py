"""Importers of arithmetic ONNX operators, old spellings above all, against ONNX Runtime (and by hand where it has no kernel)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tilewright.errors import ShapeError, UnsupportedError
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.op import OnnxNode, importer_for
from tilewright.ir.types import TensorType, dtype_of


@dataclass(frozen=True)
class Case:
    op: str
    opset: int
    inputs: Sequence[np.ndarray | np.generic | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    rtol: float = 1e-5

    def __str__(self) -> str:
        shapes = ",".join("-" if x is None else f"{x.dtype}{list(x.shape)}" for x in self.inputs)
        return f"{self.op}-{self.opset}({shapes}{''.join(f' {k}={v}' for k, v in self.attrs.items())})".replace(" ", "_")


def imported(case: Case) -> list[np.ndarray]:
    """The node through its importer, run by the references."""
    b = GraphBuilder()
    known: dict[str, np.ndarray] = {}
    ins: list[Value | None] = []
    for k, a in enumerate(case.inputs):
        v = None if a is None else b.input(f"x{k}", TensorType(dtype_of(a.dtype), a.shape))
        ins.append(v)
        if v is not None and a is not None:
            known[v.name] = np.asarray(a)
    build = importer_for("", case.op, case.opset)
    assert build is not None, f"no importer for {case.op}"

    def static(v: Value) -> np.ndarray:
        literal = b.value_of(v)
        return known[v.name] if literal is None else literal
    made = build(OnnxNode(case.op, "n", case.opset, tuple(ins), case.attrs, case.outputs, static), b)
    outs = [made] if isinstance(made, Value) else [v for v in made if v is not None]
    results = run_graph(b.graph(outs), known)
    return [results[v.name] for v in outs][:case.outputs]


def runtime(case: Case) -> list[np.ndarray]:
    def info(name: str, a: np.ndarray) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
    given = {f"x{k}": np.asarray(a) for k, a in enumerate(case.inputs) if a is not None}
    names = ["" if a is None else f"x{k}" for k, a in enumerate(case.inputs)]
    outs = [f"y{k}" for k in range(case.outputs)]
    node = helper.make_node(case.op, names, outs, **case.attrs)
    g = helper.make_graph([node], "g", [info(k, a) for k, a in given.items()], [onnx.ValueInfoProto(name=o) for o in outs])
    model = helper.make_model(g, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=min(10, onnx.IR_VERSION))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, given)


def f(*shape: int, dtype: str = "f4", low: float = -3, high: float = 3) -> np.ndarray:
    return np.random.default_rng(sum(shape) + 1).uniform(low, high, shape).astype(dtype)


def i(*shape: int, dtype: str = "i8", low: int = -5, high: int = 6) -> np.ndarray:
    return np.random.default_rng(sum(shape) + 2).integers(low, high, shape).astype(dtype)


AXES = np.array([1, -1])
CASES = [
    # elementwise
    *(Case(op, 7, (f(2, 3, 4), f(3, 1))) for op in ("Add", "Sub", "Mul", "Div", "Pow", "PRelu")),
    *(Case(op, 14, (i(2, 3, dtype=d), i(3, dtype=d, low=1))) for op in ("Add", "Mul", "Div") for d in ("i4", "i8")),
    *(Case(op, 13, (i(2, 3), i(3))) for op in ("Less", "Greater", "Equal")),
    *(Case(op, 8, (f(2, 3), f(3), f(2, 1))) for op in ("Max", "Min", "Sum", "Mean")),
    Case("Max", 13, (i(2, 3), i(3))), Case("Max", 13, (f(2, 3),)),
    Case("Pow", 13, (f(3, 4, low=0), i(4))), Case("Pow", 13, (i(3, 4, low=0), f(4, low=0))), Case("Pow", 13, (f(5), np.array([2], "f4"))),
    Case("Pow", 13, (i(3, 4, low=1, dtype="i4"), i(4, low=0))), Case("Pow", 15, (f(3, dtype="f8", low=0), f(3))),
    Case("Mod", 13, (i(3, 4), i(4, low=1))),
    Case("Mod", 13, (i(3, 4), i(4, low=1)), {"fmod": 1}), Case("Mod", 13, (f(3, 4), f(4)), {"fmod": 1}),
    Case("Clip", 6, (f(3, 5),), {"min": -1.0, "max": 0.5}), Case("Clip", 6, (f(3, 5),), {"max": 0.5}), Case("Clip", 6, (f(3, 5),)),
    Case("Clip", 11, (f(3, 5), None, np.float32(1))), Case("Clip", 12, (i(3, 5), np.int64(-1), np.int64(2))),
    Case("Clip", 13, (f(3, 5), np.float32(1), np.float32(-1))),
    *(Case("Cast", 9, (f(3, 4, dtype=s),), {"to": t}) for s in ("f4", "f8", "f2") for t in (
        TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE)),
    Case("Cast", 13, (np.array([np.nan, np.inf, -0.0, 1e-40, 0.5], "f4"),), {"to": TensorProto.BOOL}),
    Case("CastLike", 15, (f(3), i(1))),
    *(Case(op, 10, (f(4, 5),), a) for op, a in (
        ("Elu", {"alpha": 0.7}), ("Selu", {}), ("LeakyRelu", {"alpha": 0.3}), ("HardSigmoid", {"alpha": 0.5, "beta": 0.1}),
        ("ThresholdedRelu", {"alpha": 0.5}), ("Softplus", {}), ("Softsign", {}), ("Shrink", {"lambd": 1.0, "bias": 0.2}))),
    Case("Celu", 12, (f(4, 5),), {"alpha": 1.5}), Case("HardSwish", 14, (f(4, 5),)), Case("Mish", 18, (f(4, 5),)),
    Case("Gelu", 20, (f(4, 5),)), Case("Gelu", 20, (f(4, 5),), {"approximate": "tanh"}, rtol=1e-4),
    Case("IsInf", 10, (np.array([np.inf, -np.inf, np.nan, 1], "f4"),), {"detect_negative": 0}),
    Case("Round", 11, (np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.3], "f4"),)),
    Case("Dropout", 7, (f(3, 4),), {"ratio": 0.3}), Case("Dropout", 10, (f(3, 4),)), Case("Dropout", 12, (f(3, 4), np.float32(0.3))),
    # reductions
    *(Case(op, 11, (f(2, 3, 4, low=0.1),), a) for op in (
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
        "ReduceLogSumExp") for a in ({"axes": [0, -1]}, {"axes": [1], "keepdims": 0}, {"keepdims": 0})),
    *(Case(op, 18, (f(2, 3, 4, low=0.1), AXES)) for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp")),
    Case("ReduceSum", 13, (f(2, 3),), {"noop_with_empty_axes": 1}), Case("ReduceSum", 13, (f(2, 3),)),
    *(Case(op, 18, (i(3, 4, dtype="i4"), np.array([1]))) for op in ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1")),
    *(Case(op, 11, (i(3, 7).astype("f4"),), {"axis": a, "keepdims": 0}) for op in ("ArgMax", "ArgMin") for a in (0, -1)),
    Case("ArgMax", 12, (i(3, 7).astype("f4"),), {"axis": 1, "select_last_index": 1}),
    Case("GlobalAveragePool", 7, (f(2, 3, 4, 5),)), Case("GlobalMaxPool", 7, (f(2, 3, 7),)),
    Case("GlobalLpPool", 7, (f(2, 3, 4, 5),), {"p": 1}), Case("GlobalLpPool", 7, (f(2, 3, 4, 5),), {"p": 3}),
    # normalisations
    *(Case(op, o, (f(2, 3, 4),), a) for op in ("Softmax", "LogSoftmax", "Hardmax")
      for o, a in ((7, {}), (11, {"axis": 0}), (11, {"axis": 2}), (13, {}), (13, {"axis": 0}))),
    Case("BatchNormalization", 7, (f(2, 3, 4, 5), f(3), f(3), f(3), f(3, low=0.5)), {"epsilon": 0.01}),
    Case("BatchNormalization", 9, (f(2, 3, 4), f(3), f(3), f(3), f(3, low=0.5))),
    Case("BatchNormalization", 15, (f(7, 3), f(3), f(3), f(3), f(3, low=0.5))),
    Case("BatchNormalization", 14, (f(4, 3, 5), f(3), f(3), f(3), f(3, low=0.5)), {"training_mode": 1, "momentum": 0.7}, 3),
    Case("InstanceNormalization", 7, (f(2, 3, 4, 5), f(3), f(3)), {"epsilon": 0.01}, rtol=1e-4),
    Case("LayerNormalization", 17, (f(2, 3, 4), f(3, 4), f(3, 4)), {"axis": 1}, 3), Case("LayerNormalization", 17, (f(2, 3, 4), f(4)), {}),
    Case("GroupNormalization", 21, (f(2, 6, 4, 5), f(6), f(6)), {"num_groups": 3}, rtol=1e-4),
    Case("GroupNormalization", 18, (f(2, 6, 4, 5), f(3), f(3)), {"num_groups": 3}, rtol=1e-4),
    Case("MeanVarianceNormalization", 9, (f(2, 3, 4, 5),), {}, rtol=1e-4),
    Case("LpNormalization", 7, (f(2, 3, 4),), {"axis": 1, "p": 1}), Case("LpNormalization", 7, (f(2, 3, 4),)),
    Case("LRN", 7, (f(2, 7, 3, 3),), {"size": 5, "alpha": 0.1}), Case("LRN", 7, (f(2, 7, 3, 3),), {"size": 3, "beta": 0.5, "bias": 2.0}),
    # contractions
    *(Case("MatMul", 9, (f(*s), f(*t))) for s, t in (((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((3,), (4, 3, 2)), ((4, 2, 3), (3,)),
                                                     ((2, 1, 3, 4), (5, 4, 2)), ((3, 4), (2, 4, 5)))),
    *(Case("MatMul", 13, (i(3, 4, dtype=d), i(4, 2, dtype=d))) for d in ("i4", "i8")),
    Case("Gemm", 7, (f(3, 4), f(4, 5), f(5)), {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", 9, (f(4, 3), f(5, 4), f(3, 1)), {"transA": 1, "transB": 1}),
    Case("Gemm", 11, (f(3, 4), f(4, 5))), Case("Gemm", 13, (f(3, 4), f(4, 5), f(1, 1)), {"beta": 0.0}),
    Case("MatMulInteger", 10, (i(3, 4, dtype="u1", low=0), i(4, 5, dtype="i1"), np.uint8(3), np.int8(-2))),
    Case("MatMulInteger", 10, (i(3, 4, dtype="u1", low=0), i(4, 5, dtype="i1"))),
    Case("MatMulInteger", 10, (i(3, 4, dtype="u1", low=0), i(4, 5, dtype="i1"), np.uint8(3), i(5, dtype="i1"))),
    Case("QLinearMatMul", 10, (i(3, 4, dtype="u1", low=0), np.float32(0.3), np.uint8(2), i(4, 5, dtype="u1", low=0), np.float32(0.2),
                               np.uint8(3), np.float32(0.05), np.uint8(100))),
    *(Case("Einsum", 12, tuple(f(*s) for s in shapes), {"equation": e}) for e, *shapes in (
        ("ij,jk->ik", (2, 3), (3, 4)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("ij->ji", (2, 3)), ("ij->", (2, 3)),
        ("i,j->ij", (3,), (4,)),
        ("ii->i", (3, 3)), ("bhwc,hkc->bhwk", (2, 3, 4, 5), (3, 6, 5)), ("i,i", (3,), (3,)),
        ("bnqd,bnkd->bnqk", (2, 3, 4, 5), (2, 3, 6, 5)), ("abc,cd,be->ade", (2, 3, 4), (4, 5), (3, 6)), ("ij,ij->ij", (2, 3), (2, 3)),
        ("ijk,k->ij", (2, 3, 4), (4,)), ("ba,cb", (2, 3), (4, 2)))),
    # running sums
    *(Case("CumSum", 11, (f(2, 3, 4), np.array(a)), {"exclusive": e, "reverse": r}) for a in (1, -1) for e in (0, 1) for r in (0, 1)),
    Case("Det", 11, (f(2, 4, 4),), rtol=1e-4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_importer_agrees_with_onnx_runtime(case: Case) -> None:
    want, got = runtime(case), imported(case)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        rtol = max(case.rtol, 2e-3 if w.dtype == np.float16 else 0)
        np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-6 if w.dtype.kind == "f" else 0)


def test_operands_of_opset_6_align_at_an_axis() -> None:
    x, y = f(2, 3, 4, 5), f(3, 4)
    (got,) = imported(Case("Add", 6, (x, y), {"broadcast": 1, "axis": 1}))
    np.testing.assert_array_equal(got, x + y[:, :, None])


@pytest.mark.parametrize(("equation", "shapes"), [
    ("...ij,...jk->...ik", ((2, 3, 4), (4, 5))), ("...ij,...jk", ((2, 1, 3, 4), (5, 4, 2))), ("i...->...", ((3, 2, 2),)),
    ("...i,...i->...", ((3, 1, 4), (2, 4))), ("iij,jk->ik", ((3, 3, 2), (2, 5))), ("a...b->b...a", ((2, 3, 4, 5),)),
    (",ij->ji", ((), (2, 3)))])
def test_einsum_with_ellipsis_and_diagonals_is_numpys(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    xs = [f(*s) for s in shapes]
    (got,) = imported(Case("Einsum", 12, xs, {"equation": equation}))
    np.testing.assert_allclose(got, np.einsum(equation, *xs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("opset", "dtype"), [(7, np.float32), (10, np.bool_), (13, np.bool_)])
def test_dropout_keeps_everything(opset: int, dtype: type) -> None:
    x = f(3, 4)
    y, mask = imported(Case("Dropout", opset, (x,), {}, 2))
    np.testing.assert_array_equal(y, x)
    assert mask.dtype == dtype and mask.shape == x.shape and mask.all()


def test_relu_and_clip_pass_nan() -> None:
    x = np.array([np.nan, -1, 2], "f4")
    np.testing.assert_array_equal(imported(Case("Relu", 14, (x,)))[0], [np.nan, 0, 2])
    np.testing.assert_array_equal(imported(Case("Clip", 13, (x, np.float32(0), np.float32(1))))[0], [np.nan, 0, 1])


@pytest.mark.parametrize(("op", "opset", "x", "attrs", "want"), [
    ("ReduceMax", 18, np.zeros((2, 0, 3), "f4"), {}, np.full((2, 1, 3), -np.inf, "f4")),
    ("ReduceMin", 18, np.zeros((2, 0, 3), "i4"), {}, np.full((2, 1, 3), np.iinfo("i4").max, "i4")),
    ("ReduceProd", 18, np.zeros((2, 0, 3), "f4"), {}, np.ones((2, 1, 3), "f4")),
    ("ReduceLogSumExp", 18, np.zeros((2, 0, 3), "f4"), {"keepdims": 0}, np.full((2, 3), -np.inf, "f4")),
    ("ReduceMax", 20, np.array([[[True], [False]]]), {}, np.array([[[True]]])),
])
def test_reductions_of_empty_sets_and_bool(op: str, opset: int, x: np.ndarray, attrs: dict[str, Any], want: np.ndarray) -> None:
    (got,) = imported(Case(op, opset, (x, np.array([1])), attrs))
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("case", "message"), [
    (Case("Add", 14, (f(2, 3), f(4))), "do not broadcast"),
    (Case("Add", 14, (f(2, 3), i(3))), "share an element type"),
    (Case("MatMul", 13, (f(2, 3), f(4, 2))), "cannot|can be multiplied"),
    (Case("ReduceSum", 13, (f(2, 3), np.array([5]))), "axis 5"),
    (Case("Softmax", 13, (f(2, 3),), {"axis": 4}), "axis 4"),
    (Case("Einsum", 12, (f(2, 3), f(4, 2)), {"equation": "ij,jk->ik"}), "extents"),
    (Case("Einsum", 12, (f(2, 3),), {"equation": "ijk->i"}), "ranks"),
    (Case("Gemm", 13, (f(2, 3), f(3, 4), f(5))), "does not broadcast"),
    (Case("LayerNormalization", 17, (f(2, 3), f(4))), "does not broadcast"),
    (Case("GroupNormalization", 21, (f(2, 5, 3), f(5), f(5)), {"num_groups": 2}), "groups"),
    (Case("Exp", 13, (i(3),)), "not defined on i64"),
    (Case("ArgMax", 13, (f(0, 3),), {"axis": 0}), "empty"),
])
def test_bad_inputs_are_shape_errors(case: Case, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        imported(case)


@pytest.mark.parametrize("case", [
    Case("Cast", 13, (f(3),), {"to": TensorProto.STRING}), Case("Cast", 19, (f(3),), {"to": TensorProto.FLOAT8E4M3FN}),
    Case("Dropout", 12, (f(3), np.float32(0.5), np.array(True)))], ids=str)
def test_what_cannot_be_compiled_is_said(case: Case) -> None:
    with pytest.raises(UnsupportedError):
        imported(case)
