"""LLVM IR text -> optimised object code. Also the program of the build's subprocesses, so it imports llvmlite alone, and that
only when there is something to compile: a process that just talks to workers does without LLVM.

    python -P worker.py FOLDER < requests > replies          FOLDER: where llvmlite is
    python -P worker.py FOLDER --host                        what LLVM says of this machine, as JSON

llvmlite runs under one lock in each process; subprocesses are how several kernels compile at once. A request is four
texts (triple, cpu, features, IR), a reply one status byte ("+" object code, "-" error message) and one text; a text is
its length (8 bytes, little endian) and its bytes. The end of the requests ends the program.
"""
from __future__ import annotations

import json
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, BinaryIO

if __name__ == "__main__":
    sys.path += sys.argv[1:2]

if TYPE_CHECKING:
    import llvmlite.binding as llvm


class IRError(Exception):
    """LLVM refused the IR: a bug in the emitter that made it, with LLVM's words."""


@cache
def _initialise() -> None:
    import llvmlite.binding as llvm
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


def target_machine(triple: str, cpu: str, features: str) -> llvm.TargetMachine:
    """A TargetMachine of its own for each module: sharing one between modules outlives its owner in llvmlite."""
    import llvmlite.binding as llvm
    _initialise()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=2, reloc="pic", codemodel="default")


def optimised(ir: str, tm: llvm.TargetMachine, triple: str, brief: bool = False) -> llvm.ModuleRef:
    """The module after LLVM's O2 without its vectorisers and unrolling: the schedule has decided those already. `brief`: after
    the two of its passes that kernels need, in a tenth of the time."""
    import llvmlite.binding as llvm
    module = _parsed(ir, tm, triple)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = options.loop_interleaving = False
    builder = llvm.create_pass_builder(tm, options)
    _run(_brief_passes() if brief else builder.getModulePassManager(), module, builder)
    return module


def _parsed(ir: str, tm: llvm.TargetMachine, triple: str) -> llvm.ModuleRef:
    import llvmlite.binding as llvm
    try:
        module = llvm.parse_assembly(ir, context=llvm.create_context())
        module.triple, module.data_layout = triple, str(tm.target_data)
        module.verify()
    except RuntimeError as e:
        raise IRError(f"LLVM refused the IR: {e}") from None
    return module


def _run(passes: llvm.ModulePassManager, module: llvm.ModuleRef, builder: llvm.PassBuilder) -> None:
    from llvmlite.binding.newpassmanagers import NewPassManager
    try:
        passes.run(module, builder)
    finally:  # its own close() frees nothing: in llvmlite 0.50 the base class that comes first hides the one that knows how
        NewPassManager._dispose(passes)
        passes.detach()


def _brief_passes() -> llvm.ModulePassManager:
    """Stack slots to registers, loops tested at their ends. Selecting instructions simplifies what the emitter leaves to simplify."""
    import llvmlite.binding as llvm
    out = llvm.create_new_module_pass_manager()
    out.add_sroa_pass()
    out.add_loop_rotate_pass()
    return out


def inlined(ir: str, symbol: str, triple: str) -> str:
    """The module's function `symbol` alone, with all that it calls as part of it. Raises IRError."""
    import llvmlite.binding as llvm
    tm = target_machine(triple, "", "")
    module = _parsed(ir, tm, triple)
    for v in (*module.functions, *module.global_variables):
        if not v.is_declaration and v.name != symbol:
            v.linkage = "internal"
            if v.is_function:
                v.add_function_attribute("alwaysinline")
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    for _ in range(2):  # what goes with the first round is constant in the second
        passes.add_sroa_pass()
        passes.add_sccp_pass()
        passes.add_simplify_cfg_pass()
        passes.add_instruction_combine_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    _run(passes, module, llvm.create_pass_builder(tm, llvm.create_pipeline_tuning_options(speed_level=2)))
    return str(module)


def link_modules(texts: list[str], triple: str) -> str:
    """One module of several; names that are local to one of them are made distinct. Raises IRError."""
    import llvmlite.binding as llvm
    context = llvm.create_context()
    try:
        whole = llvm.parse_assembly("", context=context)
        whole.triple = triple
        for t in texts:
            module = llvm.parse_assembly(t, context=context)
            module.triple = triple
            whole.link_in(module)
    except RuntimeError as e:
        raise IRError(f"LLVM refused the IR: {e}") from None
    return str(whole)


def compile_object(ir: str, triple: str, cpu: str, features: str, brief: bool = False) -> bytes:
    """A relocatable object; `brief`: see `optimised`. Raises IRError."""
    tm = target_machine(triple, cpu, features)
    return tm.emit_object(optimised(ir, tm, triple, brief))


def host() -> tuple[str, str, dict[str, bool]]:
    """(triple of this process, LLVM's name of the processor, feature -> whether it is there: empty where LLVM cannot tell)."""
    import llvmlite.binding as llvm
    try:
        features = dict(llvm.get_host_cpu_features())
    except RuntimeError:  # on some systems
        features = {}
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), features


def llvm_is_loaded() -> bool:
    """Whether this process has LLVM in its memory, some 75 MB of it."""
    return "llvmlite.binding" in sys.modules


def command(*options: str) -> list[str]:
    """This program's command line; none where `sys.executable` is no Python interpreter, or llvmlite is not there."""
    if "python" not in os.path.basename(sys.executable or "").lower() or getattr(sys, "frozen", False):
        return []
    from importlib.util import find_spec
    spec = find_spec("llvmlite")
    if spec is None or spec.origin is None:  # importing it says so
        return []
    return [sys.executable, "-P", __file__, os.path.dirname(os.path.dirname(spec.origin)), *options]


def read_text(f: BinaryIO) -> bytes | None:
    """None at the end of the stream, torn or not."""
    head = f.read(8)
    size = int.from_bytes(head, "little")
    data = f.read(size) if len(head) == 8 else b""
    return data if len(head) == 8 and len(data) == size else None


def write_text(f: BinaryIO, data: bytes) -> None:
    f.write(len(data).to_bytes(8, "little") + data)


def main(requests: BinaryIO, replies: BinaryIO) -> None:
    while True:
        texts = [read_text(requests) for _ in range(4)]
        triple, cpu, features, ir = (t.decode() if t is not None else None for t in texts)
        if triple is None or cpu is None or features is None or ir is None:
            return
        try:
            status, data = b"+", compile_object(ir, triple, cpu, features)
        except IRError as e:
            status, data = b"-", str(e).encode()
        replies.write(status)
        write_text(replies, data)
        replies.flush()


if __name__ == "__main__":
    if "--host" in sys.argv:
        print(json.dumps(host()))
    else:
        main(sys.stdin.buffer, sys.stdout.buffer)
