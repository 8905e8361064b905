"""The rules that keep the tree a tree: imports point one way, one module reads the environment, `import tilewright` is light."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tilewright

ROOT = Path(tilewright.__file__).parent
LAYERS = {"errors": 0, "config": 0, "version": 0, "ir": 1, "backends": 2, "compiler": 3, "autotune": 4, "api": 5, "bench": 5,
          "cli": 5, "__init__": 5, "__main__": 5}
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = ("llvmlite", "numba", "numpy", "onnx", "xgboost", "torch", "networkx", "typer", "rich", "scipy", "sklearn", "ml_dtypes")


def layer(module: tuple[str, ...]) -> int:
    """The layer of ("tilewright", "ir", …); the bare package, which loads nothing, counts as the lowest."""
    return LAYERS[module[1]] if len(module) > 1 else 0


def own_module(file: Path) -> tuple[str, ...]:
    return (ROOT.name, *file.relative_to(ROOT).with_suffix("").parts)


def imported(file: Path) -> Iterator[tuple[str, ...]]:
    """The modules of this package that `file` imports anywhere, in functions and under TYPE_CHECKING too."""
    here = own_module(file)
    for node in ast.walk(ast.parse(file.read_text(), file)):
        if isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")) for a in node.names if a.name.split(".")[0] == ROOT.name)
        elif isinstance(node, ast.ImportFrom):
            base = here[:len(here) - node.level] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            if module[:1] == (ROOT.name,):
                # `from .. import ir` names a subpackage; `from .. import __version__` does not
                yield from ((*module, a.name) if len(module) == 1 and a.name in LAYERS else module for a in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    own = layer(own_module(file))
    upward = {".".join(m) for m in imported(file) if layer(m) > own}
    assert not upward, f"{file.relative_to(ROOT)} imports upward: {', '.join(sorted(upward))}"


def test_every_top_level_module_has_a_layer() -> None:
    tops = {f.relative_to(ROOT).parts[0].removesuffix(".py") for f in FILES}
    assert tops <= LAYERS.keys(), f"no layer is stated for {sorted(tops - LAYERS.keys())}"


def test_one_module_reads_the_environment() -> None:
    readers = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(), file)):
            by_attribute = isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
            by_name = isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in ("environ", "getenv") for a in node.names)
            if by_attribute or by_name:
                readers.append(str(file.relative_to(ROOT)))
    assert set(readers) <= {"config.py"}


def in_fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = in_fresh_python(f"import sys, tilewright; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert loaded == ""


def test_public_names_are_listed_and_load_when_used() -> None:
    assert set(tilewright.__all__) <= set(dir(tilewright))
    for name in tilewright.__all__:
        assert getattr(tilewright, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tilewright.no_such_name


def test_compiling_leaves_optional_and_slow_packages_alone() -> None:
    loaded = in_fresh_python("import sys, tilewright; tilewright.compile; tilewright.load; tilewright.check; "
                             "print(*[m for m in ('torch', 'xgboost', 'sklearn', 'onnxruntime', 'typer', 'rich') if m in sys.modules])")
    assert loaded == ""
