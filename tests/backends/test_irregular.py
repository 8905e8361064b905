"""Irregular ops: numba lowers them, and what comes out is code like all other, for every target, in exported and saved models."""
from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.backends.models import top
from tests.ir.op_graphs import COMPILED, check, has_kernel, op_graph
from tests.machines import need, run_models, targets
from tilewright.backends.llvm.irregular import emit_irregular
from tilewright.backends.target import Target
from tilewright.errors import InputError
from tilewright.ir.op import OPS, Op, Sample
from tilewright.ir.ops.irregular import ScatterAttrs

KERNELS = [op for op in COMPILED if any(has_kernel(op, s) for s in op.samples())]


def irregular(op: Op) -> list[Sample]:
    return [s for s in op.samples() if has_kernel(op, s)]


def test_an_index_out_of_range_is_reported() -> None:
    s = Sample((np.zeros(4, "f4"), np.array([1, 2, -4]), np.array([1, 2, 3], "f4")), ScatterAttrs(0))
    g, arrays = op_graph(OPS["scatter_elements"], [s])
    exe = tw.compile(g)
    np.testing.assert_array_equal(np.asarray(exe(*arrays.values())), [3, 1, 2, 0])
    for bad in (4, -5):
        with pytest.raises(InputError, match="out of range"):
            exe(s.inputs[0], np.array([1, bad, 0]), s.inputs[2])
    np.testing.assert_array_equal(np.asarray(exe(*arrays.values())), [3, 1, 2, 0])


def test_half_floats_move_as_bits() -> None:
    s = Sample((np.array([1.5, -2, 65504, 0], "f2"), np.array([3]), np.array([np.inf], "f2")), ScatterAttrs(0))
    g, arrays = op_graph(OPS["scatter_elements"], [s])
    np.testing.assert_array_equal(np.asarray(tw.compile(g)(*arrays.values())), np.array([1.5, -2, 65504, np.inf], "f2"))


def test_c_programs_compute_what_this_process_does(tmp_path: Path) -> None:
    """Bit by bit, every op with a kernel."""
    need("gcc")
    models, wanted = [], []
    for op in KERNELS:
        g, arrays = op_graph(op, irregular(op)[:2])
        exe = tw.compile(g)
        models.append((f"op_{op.name}", exe, list(arrays.values())))
        y = exe(*arrays.values())
        wanted.append(y if isinstance(y, tuple) else (y,))
    for (name, _, _), got, want in zip(models, run_models(models, Target.host(), tmp_path), wanted, strict=True):
        for a, b in zip(got, want, strict=True):
            assert a.tobytes() == np.asarray(b).tobytes(), name


@pytest.mark.parametrize("name", ["roi_align", "max_roi_pool", "det", "fill_from_nearest"])
def test_lower_levels(name: str) -> None:
    """Some have no instruction for floor and ceil."""
    for target in targets()[1:2]:
        g, arrays = op_graph(OPS[name], irregular(OPS[name])[:1])
        y = tw.compile(g, target=target)(*arrays.values())
        check(g, arrays, [np.asarray(a) for a in (y if isinstance(y, tuple) else (y,))], str(target))


ELSEWHERE = """
import hashlib
from tilewright.backends.llvm.irregular import emit_irregular
from tilewright.backends.target import Target
from tests.backends.models import top
from tests.ir.op_graphs import op_graph
from tilewright.ir.op import OPS
for name in ("cumsum", "scatter_nd"):  # another one first
    node = op_graph(OPS[name], list(OPS[name].samples())[:1])[0].nodes[0]
    text = emit_irregular("k", node, Target.parse("aarch64"))
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_code_is_the_same_in_every_process() -> None:
    op = OPS["scatter_nd"]
    node = op_graph(op, list(op.samples())[:1])[0].nodes[0]
    here = hashlib.sha256(emit_irregular("k", node, Target.parse("aarch64")).encode()).hexdigest()
    there = subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert there.stdout.split() == [here]


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None                     # import numba fails
import numpy as np, tilewright as tw
from tests.backends.models import top
x, again = np.load(sys.argv[2]), tw.load(sys.argv[1])
for exe in (again, tw.compile(top())):          # from the file, from the cache
    values, order = exe(x)
    assert values.tolist() == np.sort(x, 1)[:, ::-1][:, :70].tolist() and (np.take_along_axis(x, order, 1) == values).all()
again.export(sys.argv[1] + ".o")
"""


def test_what_is_compiled_needs_no_numba(tmp_path: Path) -> None:
    tw.compile(top()).save(tmp_path / "top.twx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3, 200), np.float32))
    subprocess.run([sys.executable, "-c", WITHOUT_NUMBA, str(tmp_path / "top.twx"), str(tmp_path / "x.npy")], check=True,
                   cwd=Path(__file__).parents[2])
    assert (tmp_path / "top.twx.o").exists()
