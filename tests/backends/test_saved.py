"""`.twx` files: what is saved comes back the same, whatever is damaged is one clear error."""
from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.backends.models import arguments, executable, expected
from tests.backends.test_executable import Symbolic, symbolic
from tilewright.backends import saved
from tilewright.backends.executable import Executable
from tilewright.backends.saved import load
from tilewright.backends.target import Target
from tilewright.errors import InputError, ModelError, TargetError

N = 9
X, K = arguments(N)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "m.twx"
    executable(N).save(path)
    return path


def test_round_trip(file: Path) -> None:
    exe = load(file)
    np.testing.assert_array_equal(exe(X, K), expected(X, K))
    assert [repr(s) for s in (*exe.inputs, *exe.outputs)] == ["x: float32[9]", "k: int64[9]", "y: float32[9]"]
    assert exe.name == "small" and "a note" in exe.explain()
    with pytest.raises(InputError, match=r"part of the compiled code"):
        exe.update_weights({"shape": 0})
    exe.update_weights({"w": np.arange(N, dtype=np.float32)})
    again = file.with_name("again.twx")
    exe.save(again)
    np.testing.assert_array_equal(load(again)(X, K), expected(X, K, np.arange(N)))
    with pytest.raises(InputError, match=r"compile the model to export"):
        exe.export(file.with_name("m.ll"))


def test_loads_without_llvm(file: Path) -> None:
    program = ("import sys, numpy as np\nfrom pathlib import Path\nfrom tilewright.backends.saved import load\n"
               f"load(Path({str(file)!r}))(np.zeros({N}, np.float32), np.zeros({N}, np.int64))\n"
               "assert 'llvmlite.binding' not in sys.modules and 'numba' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exe = executable(N)
    (tmp_path / "m.twx").write_text("old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"m.twx cannot be written: No space left"):
        exe.save(tmp_path / "m.twx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.twx"] and (tmp_path / "m.twx").read_text() == "old"
    with pytest.raises(InputError, match=r"cannot be written"):
        exe.save(tmp_path / "absent" / "m.twx")


def test_every_truncation_and_many_flips(file: Path, tmp_path: Path) -> None:
    data, bad = file.read_bytes(), tmp_path / "bad.twx"
    rng = random.Random(7)
    for size in [*range(0, 200, 20), *(rng.randrange(len(data)) for _ in range(40))]:
        bad.write_bytes(data[:size])
        with pytest.raises(ModelError, match=r"bad.twx is no saved model, or damaged"):
            load(bad)
    for _ in range(150):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        bad.write_bytes(changed)
        with contextlib.suppress(ModelError):
            np.testing.assert_array_equal(load(bad)(X, K), expected(X, K))  # a bit that zip does not use


def _edited(file: Path, to: Path, edit: Mapping[str, object], drop: str = "") -> Path:
    with zipfile.ZipFile(file) as a, zipfile.ZipFile(to, "w") as b:
        for name in a.namelist():
            data = a.read(name)
            if name == "manifest.json":
                data = json.dumps({**json.loads(data), **edit}).encode()
            if name != drop:
                b.writestr(name, data)
    return to


@pytest.mark.parametrize("edit", [
    {"plan": {}}, {"plan": None}, {"kind": 3}, {"format": "1"}, {"arrays": {}}, {"names": {"w": 3}}, {"literals": [1]}, {"inputs": 3},
    {"outputs": [["y", ["n"], "f32"]]}, {"outputs": [["y", [9], "f31"]]}, {"arrays": {"weight w.1": ["f32", [8]]}}, {"name": []}])
def test_manifest_that_is_damaged(file: Path, tmp_path: Path, edit: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        load(_edited(file, tmp_path / "bad.twx", edit))


@pytest.mark.parametrize("member", ["manifest.json", "code.o", "prepare.txt", "a0.npy"])
def test_member_that_is_missing(file: Path, tmp_path: Path, member: str) -> None:
    with pytest.raises(ModelError, match=r"damaged"):
        load(_edited(file, tmp_path / "bad.twx", {}, member))


def test_other_versions_and_machines(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has format 99.*save the model again"):
        load(_edited(file, tmp_path / "v.twx", {"format": 99}))
    other = Target.parse("aarch64" if Target.host().arch == "x86_64" else "x86-64")
    executable(N, other).save(tmp_path / "other.twx")
    with pytest.raises(TargetError, match=r"does not run on this machine"):
        load(tmp_path / "other.twx")
    with pytest.raises(ModelError, match=r"cannot be read"):
        load(tmp_path / "absent.twx")
    shutil.copy(__file__, tmp_path / "text.twx")
    with pytest.raises(ModelError, match=r"no saved model"):
        load(tmp_path / "text.twx")


def test_symbolic_model_is_compiled_again(tmp_path: Path) -> None:
    symbolic(Symbolic()).save(tmp_path / "s.twx")
    seen: list[tuple[bytes, object]] = []

    def recompile(source: bytes, options: Mapping[str, str | int | bool]) -> Executable:
        seen.append((source, dict(options)))
        return symbolic(Symbolic())
    np.testing.assert_array_equal(saved.load(tmp_path / "s.twx", recompile)(X, K), expected(X, K))
    assert seen == [(b"model", {"opset": 17})]
    with pytest.raises(InputError, match=r"has to be compiled"):
        saved.load(tmp_path / "s.twx")
