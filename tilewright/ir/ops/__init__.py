"""All operators, one file a family. Importing this package registers every op: each module beside this file is loaded,
so a new file needs no entry anywhere."""
import importlib
import pkgutil

for _m in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_m.name}")
