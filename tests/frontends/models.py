"""Small ONNX models as text, and how the tests run them."""
from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from tilewright.compiler.frontends import load
from tilewright.compiler.frontends.driver import run_source
from tilewright.compiler.frontends.source import Data


def model(graph: str, opset: int = 18, imports: str = "", functions: str = "", ir_version: int = 10) -> onnx.ModelProto:
    """`graph` in ONNX's text syntax: "g (float[2] x) => (float[2] y) { y = Abs(x) }"."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]>\n{graph}\n{functions}')


def run(m: onnx.ModelProto | bytes | str, *inputs: Data) -> list[Data]:
    """The model's results by way of the NumPy driver."""
    source = load(m)
    return list(run_source(source, {i.name: x for i, x in zip(source.inputs, inputs, strict=True)}).values())


def agrees(m: onnx.ModelProto, *inputs: np.ndarray) -> None:
    """Asserts that the driver and ONNX Runtime give the same."""
    session = ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)})
    got = run(m, *inputs)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert isinstance(g, np.ndarray)
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


def segments(m: onnx.ModelProto, *inputs: Data) -> int:
    """How many segments a run takes."""
    from tilewright.compiler.frontends.driver import feed, specialise
    from tilewright.compiler.frontends.source import pick
    from tilewright.ir.interpreter import run_graph
    source = load(m)
    data: dict[str, Data] = {i.name: x for i, x in zip(source.inputs, inputs, strict=True)}
    count = 1
    while True:
        _, s = specialise(source, data)
        if s.next is None:
            return count
        given = [pick(data, p) for p in s.inputs]
        by_name = run_graph(s.graph, {v.name: a for v, a in zip(s.graph.inputs, given, strict=True)})
        source, data = s.next.source, feed(s.next, given, [by_name[v.name] for v in s.graph.outputs])
        count += 1
