"""The command line: what it prints, its exit codes (0 done, 1 failed, 2 bad usage), and that users never see a traceback."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import tilewright
from tilewright.cli import app, main
from tilewright.cli.arguments import concrete, gather, parse_shapes, random_array
from tilewright.cli.console import duration, size
from tilewright.cli.results import describe, save
from tilewright.ir.types import TensorSpec

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        code = end.value.code or 0
        assert isinstance(code, int)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err
    return run


def save_model(path: Path, nodes: list[onnx.NodeProto], rows: int | str, weights: list[onnx.TensorProto] | None = None) -> Path:
    """An ONNX file with one input x: f32[rows,4] and one output y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "small", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """y = relu(x w), x: f32[3,4], w: f32[4,5]."""
    w = np.arange(20, dtype=np.float32).reshape(4, 5) - 9
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"], name="last")]
    return save_model(tmp_path / "dense.onnx", nodes, 3, [onnx.numpy_helper.from_array(w, "w")])


@pytest.fixture
def free(tmp_path: Path) -> Path:
    """y = -x, x: f32[rows,4]."""
    return save_model(tmp_path / "free.onnx", [helper.make_node("Neg", ["x"], ["y"])], "rows")


# ---- usage ---------------------------------------------------------------------------------------------------------

def test_version(cli: Run) -> None:
    assert cli("--version") == (0, f"tilewright {tilewright.__version__}\n", "")


def test_the_app_is_a_typer_app() -> None:
    done = CliRunner().invoke(app, ["targets", "--help"])
    assert done.exit_code == 0 and "targets" in done.output


def test_help_names_every_command(cli: Run) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    for command in ("compile", "run", "bench", "inspect", "check", "targets"):
        assert command in out


@pytest.mark.parametrize("args", [
    (), ("--bogus",), ("bogus",), ("run",), ("run", "missing.onnx"), ("run", "{model}", "--threads", "0"),
    ("run", "{model}"), ("run", "{model}", "--input", "x"), ("run", "{model}", "--input", "x=missing.npy"),
    ("run", "{model}", "--input", "x={model}"), ("run", "{model}", "--random", "-1"), ("run", "{model}", "--target", "z80"),
    ("run", "{model}", "--random", "0", "--shape", "nope=1,2"), ("run", "{model}", "--random", "0", "--shape", "x=1,b"),
    ("run", "{model}", "--random", "0", "--shape", "x=-1,4"), ("run", "{model}", "--random", "0", "--shape", "x=9,9"),
    ("compile", "{model}"), ("compile", "{model}", "-o", "a.exe"), ("compile", "{model}", "-o", "/no/such/folder/a.so"),
    ("inspect", "{model}", "--stage", "bogus"), ("inspect", "{model}", "--group", "0"),
    ("inspect", "{model}", "--target", "aarch64+nope"), ("bench", "{model}", "--seconds", "-1"),
])
def test_bad_usage_exits_with_2_and_says_why(cli: Run, dense: Path, args: tuple[str, ...]) -> None:
    code, _, err = cli(*(a.format(model=dense) for a in args))
    assert code == 2 and (err.strip() or not args)


def test_a_missing_input_is_named_with_its_type(cli: Run, dense: Path) -> None:
    _, _, err = cli("run", dense)
    assert "x: float32[3,4]" in err and "--random" in err


def test_free_dimensions_are_named(cli: Run, free: Path) -> None:
    code, _, err = cli("run", free, "--random", 0)
    assert code == 2 and "rows" in err and "--shape x=N,4" in err


# ---- failures ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("command", ["run", "bench", "inspect", "check", "compile"])
def test_a_damaged_model_exits_with_1(cli: Run, dense: Path, tmp_path: Path, command: str) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(dense.read_bytes()[:-40])
    extra = {"run": ("--random", "0"), "compile": ("-o", str(tmp_path / "a.o"))}.get(command, ())
    code, _, err = cli(command, broken, *extra)
    assert code == 1 and err.startswith("error: ") and "broken.onnx" in err and len(err.strip().splitlines()) == 1


def test_unsupported_nodes_are_all_listed(cli: Run, tmp_path: Path) -> None:
    nodes = [helper.make_node("StringNormalizer", ["x"], ["a"], name="first"), helper.make_node("ImageDecoder", ["a"], ["y"])]
    code, out, _ = cli("check", save_model(tmp_path / "odd.onnx", nodes, 3))
    assert code == 1 and "StringNormalizer" in out and "ImageDecoder" in out and "first" in out


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    for debug in ([], ["--debug"]):
        done = subprocess.run([sys.executable, "-m", "tilewright", "inspect", str(tmp_path / "junk.onnx"), *debug],
                              capture_output=True, text=True)
        assert done.returncode == 1 and ("Traceback" in done.stderr) == bool(debug)


# ---- work ----------------------------------------------------------------------------------------------------------

def test_check_of_a_supported_model(cli: Run, dense: Path) -> None:
    code, out, _ = cli("check", dense)
    assert code == 0 and "supported" in out


def test_run_saves_outputs(cli: Run, dense: Path, tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    np.save(tmp_path / "x.npy", x)
    code, out, _ = cli("run", dense, "--input", f"x={tmp_path / 'x.npy'}", "--output", tmp_path / "out")
    assert code == 0 and "float32[3,5]" in out
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), np.maximum(x @ (np.arange(20).reshape(4, 5) - 9), 0), rtol=1e-6)


def test_run_with_a_shape(cli: Run, free: Path) -> None:
    code, out, _ = cli("run", free, "--random", 1, "--shape", "x=7,4")
    assert code == 0 and "float32[7,4]" in out


def test_an_array_of_the_wrong_shape_is_refused(cli: Run, dense: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 9), np.float32))
    code, _, err = cli("run", dense, "--input", f"x={tmp_path / 'x.npy'}")
    assert code == 1 and err.startswith("error: ") and "9" in err


def test_compiled_file_runs_without_the_model(cli: Run, dense: Path, tmp_path: Path) -> None:
    file = tmp_path / "dense.twx"
    assert cli("compile", dense, "-o", file)[0] == 0
    dense.unlink()
    code, out, _ = cli("run", file, "--random", 0)
    assert code == 0 and "float32[3,5]" in out
    assert cli("run", file, "--random", 0, "--target", "x86-64")[0] == 2


@pytest.mark.parametrize("suffix", [".so", ".o", ".ll", ".s"])
def test_compile_exports(cli: Run, dense: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"dense{suffix}"
    code, _, err = cli("compile", dense, "-o", file)
    assert code == 0 and file.stat().st_size > 0 and str(file) in err
    assert file.with_suffix(".h").exists() == (suffix in (".so", ".o"))


@pytest.mark.parametrize(("stage", "word"), [
    ("graph", "matmul"), ("fused", "matmul"), ("loops", "loops @"), ("llvm", "define "), ("asm", "ret")])
def test_inspect_stages(cli: Run, dense: Path, stage: str, word: str) -> None:
    code, out, _ = cli("inspect", dense, "--stage", stage)
    assert code == 0 and word in out


def test_strict_has_no_winograd(cli: Run, tmp_path: Path) -> None:
    w = onnx.numpy_helper.from_array(np.full((32, 32, 3, 3), 0.5, np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 32, 16, 16]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], "g", [x], [y], [w])
    model = tmp_path / "conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    for strict in ((), ("--strict",)):
        code, out, _ = cli("inspect", model, "--stage", "fused", *strict)
        assert code == 0 and ("winograd" in out) != bool(strict)
        assert cli("run", model, "--random", 1, *strict)[0] == 0
        assert cli("compile", model, "-o", tmp_path / "conv.twx", *strict)[0] == 0
        code, out, _ = cli("bench", model, "--seconds", 0, *strict)
        assert code == 0
    assert cli("run", tmp_path / "conv.twx", "--random", 1, "--strict")[0] == 2


def test_inspect_shows_another_processors_code(cli: Run, dense: Path) -> None:
    code, out, _ = cli("inspect", dense, "--stage", "asm", "--target", "aarch64")
    assert code == 0 and "fmla" in out


def test_inspect_of_one_group(cli: Run, dense: Path) -> None:
    whole, one = cli("inspect", dense, "--stage", "loops")[1], cli("inspect", dense, "--stage", "loops", "--group", 0)[1]
    assert one.strip() and one.strip() in whole
    assert cli("inspect", dense, "--stage", "loops", "--group", "nope")[0] == 1


def test_bench_prints_times(cli: Run, dense: Path) -> None:
    code, out, _ = cli("bench", dense, "--seconds", 0.01)
    assert code == 0 and "median" in out and len(out.strip().splitlines()) == 2


def test_snapshots_run_again(cli: Run, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DUMP", str(tmp_path / "dump"))
    x = tmp_path / "x.npy"
    np.save(x, np.ones((3, 4), np.float32))
    assert cli("run", dense, "--input", f"x={x}", "--output", tmp_path / "a")[0] == 0
    monkeypatch.delenv("TILEWRIGHT_DUMP")
    snapshots = sorted((tmp_path / "dump").rglob("*.twg"))
    assert len(snapshots) > 2
    for s in (snapshots[0], snapshots[-1]):
        assert cli("run", s, "--input", f"x={x}", "--output", tmp_path / "b")[0] == 0
        (b,) = (tmp_path / "b").glob("*.npy")
        np.testing.assert_allclose(np.load(b), np.load(tmp_path / "a" / "y.npy"), rtol=1e-5)
        b.unlink()


def test_targets(cli: Run) -> None:
    code, out, _ = cli("targets")
    assert code == 0
    for name in ("native", "x86-64-v3", "aarch64", "dotprod", "this machine"):
        assert name in out


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "tilewright", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tilewright {tilewright.__version__}\n"


# ---- pieces --------------------------------------------------------------------------------------------------------

def test_shapes_are_read() -> None:
    assert parse_shapes(["x=1,3", "scalar=", "a=b=2"]) == {"x": (1, 3), "scalar": (), "a=b": (2,)}


def test_free_dimensions_are_filled() -> None:
    spec = TensorSpec("x", ("n", 3), np.dtype("f4"))
    assert concrete(spec, {"x": (8, 3)}) == (8, 3)
    values = gather([spec], {}, {"x": (8, 3)}, seed=1)
    np.testing.assert_array_equal(values["x"], gather([spec], {}, {"x": (8, 3)}, seed=1)["x"])


@pytest.mark.parametrize("name", ["f4", "f2", "i8", "u1", "i1", "?", "bfloat16"])
def test_random_values_have_the_dtype(name: str) -> None:
    import ml_dtypes
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    a = random_array(np.random.default_rng(0), dtype, (50,))
    assert a.dtype == dtype and len(np.unique(a)) > 1


def test_outputs_are_described() -> None:
    assert describe("y", np.array([1, np.nan, 3], "f4")) == ("y", "float32[3]", "1", "3", "2", "1")
    assert describe("e", np.zeros((0, 2), "i8"))[2:] == ("-", "-", "-", "0")


def test_odd_output_names_become_safe_files(tmp_path: Path) -> None:
    save({"a/b": np.zeros(1), "a:b": np.ones(1), "../up": np.ones(1)}, tmp_path / "o")
    assert sorted(f.name for f in (tmp_path / "o").iterdir()) == ["_up.npy", "a_b.npy", "a_b_1.npy"]


def test_sizes_and_times_read_well() -> None:
    assert [duration(t) for t in (2.5, 0.0123, 4.56e-6, 3e-9)] == ["2.50 s", "12.3 ms", "4.56 us", "0.00300 us"]
    assert [size(n) for n in (12, 2048, 5 << 20, 3 << 40)] == ["12 B", "2.0 KiB", "5.0 MiB", "3072.0 GiB"]
