"""What is measured: named suites of cases."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from . import models
from .models import Built

Value = Literal["median", "ready", "memory"]


@dataclass(frozen=True, slots=True)
class Case:
    """One model. threads: 0 stands for each number that the run was asked for. point: its place in a scaling suite.
    engines: such as take part beside the peers."""

    model: str
    build: Callable[[], Built]
    threads: int = 0
    point: dict[str, int] = field(default_factory=dict)
    engines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """value: what counts: "median" seconds of a call, seconds until "ready" (first result included, no caches), or bytes of
    "memory" at the peak. profiled: its kernels are dots in the roofline."""

    name: str
    about: str
    cases: tuple[Case, ...]
    value: Value = "median"
    profiled: bool = False


def _cases(**builds: Callable[[], Built]) -> tuple[Case, ...]:
    return tuple(Case(k, b) for k, b in builds.items())


_CLASSIC = ("resnet50", "squeezenet", "densenet121", "inception_v2", "shufflenet", "vgg19")
CNN: dict[str, Callable[[], Built]] = {"mobilenet_v2": models.mobilenet_v2, **{n: partial(models.classic, n) for n in _CLASSIC}}
TEXT: dict[str, Callable[[], Built]] = {f"minilm_{n}": partial(models.minilm, n) for n in (16, 128)}
OCR: dict[str, Callable[[], Built]] = {
    "ocr_det": partial(models.ocr, "ch_PP-OCRv4_det_infer", 1, 3, 640, 640),
    "ocr_rec": partial(models.ocr, "ch_PP-OCRv4_rec_infer", 1, 3, 48, 320),
    "ocr_cls": partial(models.ocr, "ch_ppocr_mobile_v2.0_cls_infer", 1, 3, 48, 192)}
KERNELS: dict[str, Callable[[], Built]] = {
    **{f"matmul {m}x{k}x{n}": partial(models.matmul, m, k, n)
       for m, k, n in ((128, 384, 384), (128, 384, 1536), (16, 384, 1536), (1, 2048, 1000), (197, 197, 197), (1024, 1024, 1024))},
    **{f"conv 3x3 {c}@{s}": partial(models.convolution, c, c, s) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))},
    "conv 7x7/2 3-64@224": partial(models.convolution, 3, 64, 224, 7, 2),
    "conv 1x1 256-64@56": partial(models.convolution, 256, 64, 56, 1),
    "depthwise 3x3 144@56": partial(models.convolution, 144, 144, 56, 3, 1, 144),
    "softmax 1536x128": partial(models.rows, "Softmax", 1536, 128),
    "layer norm 128x384": partial(models.rows, "LayerNormalization", 128, 384),
    "gelu 128x1536": partial(models.rows, "Gelu", 128, 1536)}


def suites(cores: int) -> dict[str, Suite]:
    """All suites, for a machine of so many usable cores."""
    counts = sorted({1, *(2**k for k in range(8) if 2**k < cores), cores})
    some = {k: CNN[k] for k in ("resnet50", "mobilenet_v2")} | {"minilm_128": TEXT["minilm_128"]}
    scaling = (
        *(Case(k, some[k], n, {"threads": n}) for k in ("resnet50", "minilm_128") for n in counts),
        *(Case(f"mobilenet_v2 x{n}", partial(models.mobilenet_v2, n), 1, {"batch": n}) for n in (1, 2, 4, 8)),
        *(Case(f"minilm_{n}", partial(models.minilm, n), 1, {"sequence": n}) for n in (16, 32, 64, 128, 256)))
    found: Sequence[Suite] = (
        Suite("cnn", "image classifiers, one image", _cases(**CNN), profiled=True),
        Suite("transformer", "text and bytes: MiniLM at two lengths, Magika", _cases(**TEXT, magika=models.magika), profiled=True),
        Suite("ocr", "text in images: detection, recognition, orientation", _cases(**OCR), profiled=True),
        Suite("kernels", "single operators", _cases(**KERNELS), profiled=True),
        Suite("calls", "what a call costs where there is hardly anything to do", (
            *(Case(f"add {n}", partial(models.add, n), 1, engines=("numpy",)) for n in (16, 1024)),
            Case("perceptron 1x16-16-4", partial(models.perceptron, 1, (16, 16, 4)), 1))),
        Suite("compile-time", "from the file to the first result, nothing cached", tuple(Case(k, b, 1) for k, b in some.items()), "ready"),
        Suite("memory", "growth of the process's peak, from the file to the first result",
              tuple(Case(k, b, 1) for k, b in (some | {"vgg19": CNN["vgg19"]}).items()), "memory"),
        Suite("scaling", "with threads, batch and sequence length", scaling))
    return {s.name: s for s in found}
