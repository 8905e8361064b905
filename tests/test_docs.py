"""The Python in the documentation runs as it stands, and its links lead somewhere."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.machines import need

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def run_python(page: Path, tmp_path: Path) -> None:
    """All ```python blocks of a page, in order, in one process, in a folder that holds a model.onnx (f32[2,3] -> f32[2,4])."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2, 3]), ("y", [2, 4])))
    w = onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx")
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks(page, "python"))], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    run_python(page, tmp_path)


def test_the_exported_example_runs_in_c(tmp_path: Path) -> None:
    """The page's C program as main.c, and its shell commands one block after the other."""
    page = ROOT / "docs" / "export.md"
    run_python(page, tmp_path)
    (program,) = blocks(page, "c")
    (tmp_path / "main.c").write_text(program)
    for commands in blocks(page, "sh"):
        for tool in re.findall(r"^([a-z]\S+)", commands, re.M):
            need(tool)
        done = subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "6 6 6 6\n15 15 15 15\n"), done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)\)", text)]
    files = [ROOT / f for f in re.findall(r"`((?:tilewright|tests|benchmarks|demo|docs)/[\w/.]+)`", text)]
    assert not [str(f) for f in (*links, *files) if not f.exists()]
