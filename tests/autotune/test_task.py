"""Tasks: canonical text, read back; the same for models that differ in names and weights."""
from __future__ import annotations

from pathlib import Path

import pytest

import tilewright as tw
from tests.autotune.programs import matmul, mlp, softmax, task
from tilewright.autotune.extract import extract
from tilewright.autotune.task import model_text, parse_workload, task_of
from tilewright.backends.target import Target
from tilewright.compiler.schedule.source import Wanted
from tilewright.errors import ModelError
from tilewright.ir.program import program_text
from tilewright.ir.program_text import parse_program

HOST = Target.host()


def test_a_task_reads_back_from_its_text() -> None:
    for t in (task(), task(softmax())):
        again = parse_workload(t.workload, HOST)
        assert again == t.__class__(t.workload, t.program, t.packable, HOST)
        assert again.hash == t.hash
        assert program_text(again.program, canonical=True) == program_text(t.program, canonical=True)
        assert str(again.default()) == str(t.default())
    assert task().packable == {"b1"}


def test_names_do_not_matter_and_weights_do() -> None:
    a, b = task(matmul()), task_of(Wanted(matmul(names=("p", "q", "r")), frozenset({"q"})), HOST, 1)
    assert a.hash == b.hash
    assert task(matmul(), packable=frozenset()).hash != a.hash  # what cannot be laid out beforehand has another best schedule


def test_models_that_differ_in_names_and_weights_have_the_same_tasks(tmp_path: Path) -> None:
    a, b = (extract(mlp(tmp_path / f"{k}.onnx", k, prefix), threads=1) for k, prefix in ((0, ""), (1, "net/")))
    assert [t.hash for t in a] == [t.hash for t in b]
    assert model_text(a) == model_text(b)
    assert [t.uses for t in a] == [1, 1, 1]


def test_what_is_no_workload_is_refused() -> None:
    good = task().workload
    for text in ("", "program", good.replace("packable:", ""), good.replace("b1[", "b9["), good.replace("f32", "f33"),
                 good.replace("packable: b1", "packable: b9"), good[:40], good.replace("sum(", "total(")):
        with pytest.raises(ModelError):
            parse_workload(text, HOST)


def test_symbolic_shapes_must_be_given(tmp_path: Path) -> None:
    import onnx
    m = onnx.load(mlp(tmp_path / "m.onnx"))
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(m, tmp_path / "s.onnx")
    with pytest.raises(tw.InputError, match="inputs="):
        extract(tmp_path / "s.onnx")
    assert [t.hash for t in extract(tmp_path / "s.onnx", {"x": (9, 40)}, threads=1)] == [
        t.hash for t in extract(tmp_path / "m.onnx", threads=1)]


def test_programs_of_all_operators_read_back() -> None:
    """Whatever the operators' samples lower to."""
    from tests.ir.op_graphs import COMPILED, op_graph
    from tilewright.compiler.build import lower_graph, make_options
    options = make_options("native", 1, "f32", None, False)
    seen = 0
    for op in COMPILED:
        for s in list(op.samples())[:3]:
            for w in lower_graph(op_graph(op, [s])[0], options).wanted:
                text = program_text(w.program, canonical=True)
                assert program_text(parse_program(text), canonical=True) == text, op.name
                seen += 1
    assert seen > 200
