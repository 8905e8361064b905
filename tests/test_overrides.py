"""A private method belongs to its class: one of a derived class that takes its name by chance would silently take its place."""
from __future__ import annotations

import importlib
import inspect
import pkgutil

import tilewright


def test_no_private_method_is_replaced() -> None:
    replaced = []
    for found in pkgutil.walk_packages(tilewright.__path__, "tilewright."):
        if found.name.endswith(".__main__") or found.name.endswith(".worker"):
            continue
        module = importlib.import_module(found.name)
        for c in vars(module).values():
            if not inspect.isclass(c) or c.__module__ != found.name:
                continue
            own = {k for k, v in vars(c).items() if k.startswith("_") and not k.endswith("__") and inspect.isfunction(v)}
            for base in c.__mro__[1:]:
                if base.__module__.startswith("tilewright"):
                    replaced += [f"{c.__qualname__}.{k} of {base.__qualname__}" for k in own & vars(base).keys()]
    assert not replaced, f"rename: {', '.join(replaced)}"
