"""ONNX's own backend tests of single operators, imported and run with NumPy: what does not pass is listed here, with why."""
from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from onnx.backend.test import runner
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from tilewright.compiler.frontends import load
from tilewright.compiler.frontends.driver import run_source
from tilewright.compiler.frontends.source import Data
from tilewright.errors import UnsupportedError

# Operators that are not supported, and why. Everything else in ONNX's own domain is.
NO_IMPORTER = {
    "ImageDecoder": "decodes files", "TfIdfVectorizer": "text", "StringNormalizer": "strings", "RegexFullMatch": "strings",
    "RandomUniformLike": "random", "Dropout": "random in training mode", "ai.onnx.ml.TreeEnsemble": "trees have a frontend of their own",
}
# Tests that miss ONNX's own tolerance: (rtol, atol) that they do meet, and why.
DIFFERENT = {
    "test_attention_4d_causal_fp16": (2e-3, 0.0, "two elements off by one unit of f16: softmax rounds to f16, as ONNX's body says"),
    "test_attention_4d_causal_fp16_expanded": (2e-3, 0.0, "the same"),
    "test_dft_inverse": (1e-3, 1e-6, "2e-7 where exactly 0 is expected, among values of 50"),
    "test_dft_inverse_opset19": (1e-3, 1e-6, "the same"),
    "test_loop16_seq_none": (0.0, 0.0, "equal; but onnx's comparison cannot take a sequence with scalars in it"),
}


def _tests() -> list[TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


TESTS = _tests()


def explained(message: str) -> bool:
    """Whether a refusal is one of those listed above, or names an element type that Tilewright does not have."""
    found = re.match(r"([\w.]+) '", message)
    return "element type" in message or "strings" in message or (found is not None and found[1] in NO_IMPORTER)


def assert_close(got: Data, wanted: Data, rtol: float, atol: float) -> None:
    if isinstance(got, list):
        assert isinstance(wanted, list)
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, rtol, atol)
    else:
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=rtol, atol=atol)


@pytest.mark.parametrize("t", TESTS, ids=lambda t: t.name)
@pytest.mark.filterwarnings("ignore")
def test_node(t: TestCase) -> None:
    normalise = getattr(runner, "_normalize_tensor", lambda x: x)
    assert t.model is not None
    try:
        source = load(t.model)
        for inputs, wanted in t.data_sets or ():
            with np.errstate(all="ignore"):
                got = run_source(source, {i.name: normalise(x) for i, x in zip(source.inputs, inputs, strict=False)})
            if t.name in DIFFERENT:
                rtol, atol, _ = DIFFERENT[t.name]
                assert_close(list(got.values()), list(wanted), rtol, atol)
                return
            runner.Runner.assert_similar_outputs(
                ref_outputs=[normalise(x) for x in wanted], outputs=list(got.values()), rtol=t.rtol, atol=t.atol)
    except UnsupportedError as e:
        assert explained(str(e)), e
