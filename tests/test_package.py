"""The wheel holds every module, the typing marker, the licence and the command; nothing else."""
from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tilewright

ROOT = Path(tilewright.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps", "--no-build-isolation",
                    "-w", str(folder), str(ROOT.parent)], check=True)
    (file,) = folder.glob("tilewright-*.whl")
    return zipfile.ZipFile(file)


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    mine = {str(f.relative_to(ROOT.parent)) for f in ROOT.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    packed = {n for n in wheel.namelist() if not n.split("/")[0].endswith(".dist-info")}
    assert packed == mine


def test_wheel_names_version_licence_and_command(wheel: zipfile.ZipFile) -> None:
    info = f"tilewright-{tilewright.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Version: {tilewright.__version__}" in metadata and "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    commands = configparser.ConfigParser()
    commands.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert commands["console_scripts"]["tilewright"] == "tilewright.cli:main"


def test_wheel_works_from_its_own_place(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tilewright.cli; print(tilewright.__file__); "
            "tilewright.cli.main(['--version'])")
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout.splitlines()
    assert out == [str(tmp_path / "tilewright" / "__init__.py"), f"tilewright {tilewright.__version__}"]
