"""PyTorch modules come in through torch's ONNX exporter."""
from __future__ import annotations

import sys

import numpy as np
import pytest

from tilewright.compiler.frontends import load
from tilewright.compiler.frontends.driver import run_source
from tilewright.errors import InputError, ModelError, UnsupportedError

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("onnxscript", reason="needs the extra `torch`")


def outputs(module: object, *inputs: object) -> list[np.ndarray]:
    source = load(module, inputs)
    data = {i.name: np.asarray(x) for i, x in zip(source.inputs, inputs, strict=True)}
    return [np.asarray(y) for y in run_source(source, data).values()]


def test_a_small_network() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), torch.nn.Linear(8, 5), torch.nn.Softmax(-1)).eval()
    x = torch.randn(2, 3, 16, 16)
    (y,) = outputs(net, x)
    np.testing.assert_allclose(y, net(x).detach().numpy(), rtol=1e-4, atol=1e-6)
    assert {"0.weight", "0.bias", "5.weight", "5.bias"} <= set(load(net, (x,)).import_graph({}).weights)


def test_a_transformer_layer() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 7, 32)
    (y,) = outputs(layer, x)
    np.testing.assert_allclose(y, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_arrays_as_examples() -> None:
    net = torch.nn.Linear(4, 3).eval()
    x = np.ones((2, 4), "f4")
    np.testing.assert_allclose(outputs(net, x)[0], net(torch.from_numpy(x)).detach().numpy(), rtol=1e-5)


class Branching(torch.nn.Module):
    def forward(self, x: object) -> object:
        return x if x.sum() > 0 else x * 2  # type: ignore[attr-defined,operator]


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 4)
    net = torch.nn.Linear(4, 3)
    with pytest.raises(ModelError, match=r"Linear is in training mode"):
        load(net, (x,))
    with pytest.raises(InputError, match=r"needs example inputs"):
        load(net.eval())
    with pytest.raises(UnsupportedError, match=r"torch cannot export Branching.*data-dependent"):
        load(Branching().eval(), (x,))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UnsupportedError, match=r"onnxscript"):
        load(net, (x,))


def test_saved_modules_are_recognised() -> None:
    with pytest.raises(ModelError, match=r"looks like a saved PyTorch model"):
        load("net.pt")
