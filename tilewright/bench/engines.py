"""The engines that a model can be timed with. Each is optional; one that is not installed is listed as absent.

An adapter's `prepare` runs in a process that holds nothing but this engine (`worker.py`); what it raises is reported as
that engine's failure.
"""
from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backends.target import Target

Arrays = Sequence[np.ndarray]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True)
class Job:
    """A model to prepare: an ONNX file, arrays of its inputs in order (they fix symbolic shapes), and the options."""

    model: Path
    inputs: tuple[np.ndarray, ...]
    threads: int = 1
    precision: str = "f32"
    schedules: str | None = None
    cold: bool = False  # tilewright leaves its cache of compiled kernels alone
    strict: bool = False  # tilewright computes sums as the model writes them


@dataclass(frozen=True, slots=True)
class Adapter:
    """name: as in `--peers`. package: on PyPI, for its version. modules: what must be importable."""

    name: str
    package: str
    modules: tuple[str, ...]
    prepare: Callable[[Job], Run]

    @property
    def missing(self) -> tuple[str, ...]:
        """The modules that are not installed."""
        return tuple(m for m in self.modules if not _found(m))

    @property
    def version(self) -> str:
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that a dotted name begins with
        return False


def _list(outputs: object) -> list[np.ndarray]:
    found = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [np.asarray(o) for o in found]


def _tilewright(job: Job) -> Run:
    import tilewright as tw
    exe = tw.compile(str(job.model), inputs=job.inputs, threads=job.threads, precision=job.precision, schedules=job.schedules,
                     cache=not job.cold, strict=job.strict)
    return lambda ins: exe(*ins)  # type: ignore[return-value]  (one array or a tuple: the worker copes)


def _onnxruntime(job: Job) -> Run:
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = job.threads, 1, 3
    session = ort.InferenceSession(str(job.model), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda ins: session.run(None, dict(zip(names, ins, strict=True)))


def _openvino(job: Job) -> Run:
    import openvino as ov  # pyright: ignore[reportMissingImports]
    core = ov.Core()
    model = core.read_model(str(job.model))
    if any(p.partial_shape.is_dynamic for p in model.inputs):
        model.reshape({p: a.shape for p, a in zip(model.inputs, job.inputs, strict=True)})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": job.precision, "INFERENCE_NUM_THREADS": job.threads,
                                                 "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    return lambda ins: list(request.infer(list(ins), share_inputs=True).values())


def _torch(compiled: bool) -> Callable[[Job], Run]:
    def prepare(job: Job) -> Run:
        import torch  # pyright: ignore[reportMissingImports]

        from .onnx_torch import module
        torch.set_num_threads(job.threads)
        with torch.inference_mode():
            net = module(job.model, job.inputs)
        call = torch.compile(net, dynamic=False) if compiled else net

        def run(ins: Arrays) -> Arrays:
            with torch.inference_mode():
                return [o.numpy() for o in call(*map(torch.from_numpy, ins))]
        return run
    return prepare


def _pin(threads: int) -> None:
    """For engines whose only setting is what the process may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-threads:]))


def _jax(job: Job) -> Run:
    _pin(job.threads)
    import jax  # pyright: ignore[reportMissingImports]
    import onnx
    from jaxonnxruntime.call_onnx import call_onnx_model  # pyright: ignore[reportMissingImports]
    function, weights = call_onnx_model(onnx.load(str(job.model)), list(job.inputs))
    call = jax.jit(function)
    return lambda ins: [np.asarray(o) for o in call(weights, list(ins))]


def _tvm(job: Job) -> Run:
    _pin(job.threads)
    import onnx
    import tvm  # pyright: ignore[reportMissingImports]
    from tvm import relax  # pyright: ignore[reportMissingImports]
    from tvm.relax.frontend.onnx import from_onnx  # pyright: ignore[reportMissingImports]
    model = onnx.load(str(job.model))
    module = from_onnx(model, shape_dict={i.name: list(a.shape) for i, a in zip(model.graph.input, job.inputs, strict=True)})
    machine = relax.VirtualMachine(tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": Target.host().cpu})), tvm.cpu())

    def run(ins: Arrays) -> Arrays:
        out = machine["main"](*(tvm.runtime.tensor(a) for a in ins))
        return [o.numpy() for o in (out if hasattr(out, "__len__") and not hasattr(out, "numpy") else [out])]
    return run


def _iree(job: Job) -> Run:
    _pin(job.threads)
    import tempfile

    from iree import compiler, runtime  # pyright: ignore[reportMissingImports]
    from iree.compiler.tools.import_onnx.__main__ import main, parse_arguments  # pyright: ignore[reportMissingImports]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "model.mlir"
        main(parse_arguments([str(job.model), "-o", str(text)]))
        code = compiler.compile_str(text.read_text(), input_type="onnx", target_backends=["llvm-cpu"],
                                    extra_args=["--iree-llvmcpu-target-cpu=host"])
    module = runtime.load_vm_flatbuffer(code, driver="local-task")
    entry = module[next(n for n in module.vm_module.function_names if not n.endswith("$async") and not n.startswith("__"))]

    def run(ins: Arrays) -> Arrays:
        out = entry(*ins)
        return [o.to_host() for o in (out if isinstance(out, (list, tuple)) else [out])]
    return run


def _numpy(job: Job) -> Run:
    """One ufunc, for models of one Add: what a call of NumPy costs."""
    import onnx
    nodes = onnx.load(str(job.model)).graph.node
    if len(nodes) != 1 or nodes[0].op_type != "Add":
        raise ValueError("serves models of one Add only")
    return lambda ins: [np.add(ins[0], ins[1])]


ENGINES: dict[str, Adapter] = {a.name: a for a in (
    Adapter("tilewright", "tilewright", ("tilewright",), _tilewright),
    Adapter("onnxruntime", "onnxruntime", ("onnxruntime",), _onnxruntime),
    Adapter("openvino", "openvino", ("openvino",), _openvino),
    Adapter("torch", "torch", ("torch",), _torch(compiled=False)),
    Adapter("inductor", "torch", ("torch",), _torch(compiled=True)),
    Adapter("jax", "jax", ("jax", "jaxonnxruntime", "absl"), _jax),
    Adapter("tvm", "apache-tvm", ("tvm",), _tvm),
    Adapter("iree", "iree-base-compiler", ("iree.compiler", "iree.runtime"), _iree),
    Adapter("numpy", "numpy", ("numpy",), _numpy),
)}
PEERS = tuple(n for n in ENGINES if n not in ("tilewright", "numpy"))
