"""A whole small CNN, compiled from ONNX, exported, linked to a C main: on this machine and on AArch64 under qemu."""
from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.backends.test_export import GCC, need
from tilewright.backends.target import Target
from tilewright.compiler.compile import compile

HOST = Target.host()
MAIN = r"""
#include "cnn.h"
#include <stdio.h>
#include <stdlib.h>
static float image[3 * 19 * 23], scores[5];
int main(void) {
  void *workspace = malloc(cnn_workspace_bytes());
  if (fread(image, sizeof image, 1, stdin) != 1) return 2;
  if (cnn_run(image, scores, workspace)) return 3;
  return fwrite(scores, sizeof scores, 1, stdout) != 1;
}
"""


def cnn() -> onnx.ModelProto:
    """Convolutions 3x3, depthwise, strided and 1x1, batch norm, a residual, pooling, a matrix product and softmax; odd sizes."""
    rng = np.random.default_rng(5)
    weights = {n: (rng.standard_normal(s) * 0.3).astype("f4") for n, s in {
        "w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 1, 3, 3), "w2": (16, 16, 1, 1), "w3": (24, 16, 3, 3), "fc": (24, 5), "scale": (16,),
        "shift": (16,), "mean": (16,)}.items()} | {"var": np.linspace(0.5, 2, 16, dtype="f4")}

    def node(op: str, *args: str, **attrs: Any) -> onnx.NodeProto:
        return helper.make_node(op, list(args[:-1]), [args[-1]], **attrs)
    nodes = [
        node("Conv", "image", "w0", "b0", "c0", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "c0", "r0"),
        node("Conv", "r0", "w1", "c1", pads=[1, 1, 1, 1], group=16),
        node("BatchNormalization", "c1", "scale", "shift", "mean", "var", "n1"),
        node("Clip", "n1", "zero", "six", "r1"), node("Conv", "r1", "w2", "c2"), node("Add", "c2", "r0", "s"),
        node("MaxPool", "s", "p", kernel_shape=[2, 2], strides=[2, 2]), node("Conv", "p", "w3", "c3", pads=[1, 1, 1, 1]),
        node("Sigmoid", "c3", "g"), node("Mul", "c3", "g", "h"), node("GlobalAveragePool", "h", "m"), node("Flatten", "m", "f"),
        node("MatMul", "f", "fc", "z"), node("Softmax", "z", "scores", axis=1)]
    constants = {**weights, "zero": np.array(0, "f4"), "six": np.array(6, "f4")}
    graph = helper.make_graph(
        nodes, "cnn", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 19, 23])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5])], [numpy_helper.from_array(a, n) for n, a in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("target", ["native", "aarch64", "aarch64+neon+dotprod"])
def test_cnn_as_an_object_in_a_c_program(tmp_path: Path, target: str) -> None:
    image = np.random.default_rng(1).standard_normal((1, 3, 19, 23)).astype("f4")
    want = compile(cnn())(image)
    assert isinstance(want, np.ndarray) and abs(want.sum() - 1) < 1e-5
    t = Target.parse(target)
    compile(cnn(), target=target).export(tmp_path / "cnn.o")
    (tmp_path / "main.c").write_text(MAIN)
    other = t.arch != HOST.arch
    compiler = [need(GCC[t.arch]), "-static"] if other else [need("gcc")]
    subprocess.run([*compiler, "-Wall", "-Werror", "main.c", "cnn.o", "-o", "main"], cwd=tmp_path, check=True)
    command = [need(f"qemu-{t.arch}"), "./main"] if other else ["./main"]
    done = subprocess.run(command, cwd=tmp_path, check=True, input=image.tobytes(), capture_output=True)
    np.testing.assert_allclose(np.frombuffer(done.stdout, "f4").reshape(1, 5), want, rtol=2e-4, atol=1e-6)


def test_cnn_agrees_with_onnx_runtime() -> None:
    ort = pytest.importorskip("onnxruntime")
    image = np.random.default_rng(1).standard_normal((1, 3, 19, 23)).astype("f4")
    want = ort.InferenceSession(cnn().SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
    np.testing.assert_allclose(np.asarray(compile(cnn())(image)), want, rtol=2e-4, atol=1e-6)
