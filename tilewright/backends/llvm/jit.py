"""From LLVM IR to code in this process: compile (in parallel, through the cache), link, load.

Code is loaded as a shared library from memory by the system's own loader, which knows about caches, page protection
and symbols for debuggers; `Library` unloads it when the last reference is gone.
"""
from __future__ import annotations

import _ctypes
import contextlib
import itertools
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from ...errors import TargetError
from ..cache import ObjectCache, cache_key, compiler_version, llvm_version
from ..target import Target, missing_features, runs_here
from .elf import Bytes, Image, combine
from .linker import shared_library
from .worker import command, llvm_is_loaded, read_text, write_text  # which does not load LLVM

EXTERNAL = ("memcpy", "memmove", "memset")  # what LLVM may make of loops; every C library has them
_PARALLEL_CHARS = 300_000  # of IR: about a second of compiling; below, starting workers costs more than it gains
_TYPICAL = 4  # texts that tell how long the others will be
_APART = 4  # builds with little to compile that a worker does, so that a process with a model or two never loads LLVM
_built_apart = itertools.count()


@dataclass(frozen=True, slots=True)
class Job:
    """One module to compile. `key` stands for the text, which is asked for only where the cache misses."""

    symbol: str
    key: str
    text: Callable[[], str]

    @staticmethod
    def of(symbol: str, ir: str) -> Job:
        """A module whose text is known."""
        return Job(symbol, cache_key("ir", llvm_version(), ir), lambda: ir)

    @staticmethod
    def lazy(symbol: str, key: str, text: Callable[[], str]) -> Job:
        """A module whose text follows from `key` (a scheduled program, the symbol) and the compiler's own code."""
        return Job(symbol, cache_key("program", compiler_version(), symbol, key), text)


def compile_ir(text: str, target: Target) -> bytes:
    """A relocatable object. LLVM's refusal is an assertion: the emitter is wrong, not the user."""
    from .worker import IRError, compile_object
    try:
        return compile_object(text, target.triple, target.cpu, target.features)
    except IRError as e:
        raise AssertionError(str(e)) from None


def optimised_ir(text: str, target: Target) -> str:
    """The IR as it is when machine code is selected."""
    from .worker import optimised, target_machine
    return str(optimised(text, target_machine(target.triple, target.cpu, target.features), target.triple))


def assembly(text: str, target: Target) -> str:
    """The assembler text of a module."""
    from .worker import optimised, target_machine
    tm = target_machine(target.triple, target.cpu, target.features)
    return tm.emit_assembly(optimised(text, tm, target.triple))


def object_key(job: Job, target: Target) -> str:
    """Under which the cache keeps the job's object."""
    return cache_key(job.key, target.code_key())


def build(jobs: Sequence[Job], target: Target, cache: ObjectCache, workers: int | None = None) -> list[bytes]:
    """The jobs' objects, in order: from the cache, the others compiled by up to `workers` processes (default: one for each
    usable core), or by this one where there is little to do."""
    keys = [object_key(j, target) for j in jobs]
    done = {k: o for k in dict.fromkeys(keys) if (o := cache.get(k)) is not None}
    missing = {k: j for k, j in zip(keys, jobs, strict=True) if k not in done}
    if missing:
        made = _compile_all(missing, target, workers or Target.host().cores)
        for k, o in made.items():
            cache.put(k, o)
        cache.prune()
        done |= made
    return [done[k] for k in keys]


_Queue = queue.PriorityQueue[tuple[int, str]]  # (-length, key) of a text: the largest comes first, so that none is left to the end
_END = (1, "")  # comes last, once for each worker


def _compile_all(jobs: dict[str, Job], target: Target, workers: int) -> dict[str, bytes]:
    """Where there is much to compile, workers do it, from when this thread still makes texts: LLVM takes some 75 MB, which this
    process would keep. It compiles what is little once it has LLVM, and what workers did not do."""
    todo: _Queue = queue.PriorityQueue()
    texts: dict[str, str] = {}
    done: dict[str, bytes] = {}
    threads: list[threading.Thread] = []
    try:
        size = 0
        for n, (k, j) in enumerate(jobs.items(), 1):
            texts[k] = text = j.text()
            todo.put((-len(text), k))
            size += len(text)
            expected = size * len(jobs) // n if n >= _TYPICAL else size
            much = expected >= _PARALLEL_CHARS
            if not threads and (much or (n == len(jobs) and not llvm_is_loaded() and next(_built_apart) < _APART)):
                found = _start_workers(min(workers, len(jobs)) if much else 1)
                threads = [threading.Thread(target=_serve, args=(p, todo, texts, target, done)) for p in found]
                for t in threads:
                    t.start()
        while not threads and (k := _take(todo)):
            done[k] = compile_ir(texts.pop(k), target)
    except BaseException:
        while _take(todo):  # nobody needs the rest
            pass
        raise
    finally:
        for _ in threads:
            todo.put(_END)
        for t in threads:
            t.join()
    for k, j in jobs.items():  # what a worker did not answer, or no worker was left for
        if k not in done:
            done[k] = compile_ir(j.text(), target)
    return done


def _take(todo: _Queue) -> str:
    """The next key; "" where there is none now."""
    try:
        return todo.get_nowait()[1]
    except queue.Empty:
        return ""


def _start_workers(count: int) -> list[subprocess.Popen[bytes]]:
    """Fewer than `count` where processes cannot be started."""
    line = command()
    if not line:
        return []
    found = []
    for _ in range(count):
        try:
            found.append(subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        except OSError:
            break
    return found


def _serve(worker: subprocess.Popen[bytes], todo: _Queue, texts: dict[str, str], target: Target,
           done: dict[str, bytes]) -> None:
    """Feeds one worker until there is no more to do or it dies. What it did not answer stays out of `done`."""
    requests, replies = cast(BinaryIO, worker.stdin), cast(BinaryIO, worker.stdout)
    try:
        while k := todo.get()[1]:
            for text in (target.triple, target.cpu, target.features, texts.pop(k)):
                write_text(requests, text.encode())
            requests.flush()
            status, data = replies.read(1), read_text(replies)
            if status != b"+" or data is None:
                break  # dead, or LLVM refused the IR: compiling it again in this process says why
            done[k] = data
    except OSError:  # a broken pipe
        pass
    finally:
        for pipe in (requests, replies):
            with contextlib.suppress(OSError):
                pipe.close()
        worker.kill()
        worker.wait()


class Library:
    """Code in this process. Addresses are valid as long as the object lives."""

    def __init__(self, image: Sequence[Bytes]) -> None:
        self._handle, self._kept = _load(image), False

    def address(self, symbol: str) -> int:
        return _ctypes.dlsym(self._handle, symbol)

    def keep(self) -> None:
        """The code stays in memory when this object is gone."""
        self._kept = True

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) and not self._kept:
            _ctypes.dlclose(handle)


def load(objects: Sequence[bytes], exported: Sequence[str], target: Target, external: Sequence[str] = ()) -> Library:
    """Links objects and loads them. `external`: functions of the C library that they call, besides EXTERNAL. Raises
    TargetError where this machine cannot run them."""
    require_host(target)
    return load_image(combine(objects), exported, external)


def load_image(image: Image, exported: Sequence[str], external: Sequence[str] = ()) -> Library:
    """The same for an Image that was checked to be for this machine."""
    return Library(shared_library(image, exported, "tilewright.so", (*EXTERNAL, *external)))


def require_host(target: Target) -> None:
    """Raises TargetError where this machine cannot run code for `target`."""
    if not runs_here(target):
        missing = ", ".join(missing_features(target)[:8]) if target.arch == Target.host().arch else f"a {target.arch} processor"
        raise TargetError(f"target {target} does not run on this machine, which lacks {missing}; export it, or compile for 'native'")


_serial = itertools.count()


def _load(image: Sequence[Bytes]) -> int:
    """A handle of the system's loader. (`ctypes.CDLL` never closes its own, and makes a class for each library.) Some
    systems forbid code in anonymous files: then the temporary folder serves."""
    try:
        handle = os.memfd_create("tilewright", os.MFD_CLOEXEC)
        try:
            return _open_library(handle, _unique_path(handle), image)
        finally:
            os.close(handle)
    except (OSError, AttributeError):
        pass
    try:
        handle, path = tempfile.mkstemp(prefix="tilewright", suffix=".so")
        try:
            return _open_library(handle, path, image)
        finally:
            os.close(handle)
            os.unlink(path)
    except OSError as e:
        raise TargetError(f"this system does not let compiled code be loaded, from memory or from {tempfile.gettempdir()}: {e}") from None


def _open_library(handle: int, path: str, image: Sequence[Bytes]) -> int:
    with os.fdopen(handle, "wb", closefd=False) as f:
        f.writelines(image)
    return _ctypes.dlopen(path, os.RTLD_NOW | os.RTLD_LOCAL)


def _unique_path(handle: int) -> str:
    """A path to an open file. The loader takes equal paths for the same library, even when the number now stands for
    another file: so every path is spelled differently, by "." or nothing for each bit of a counter."""
    bits = f"{next(_serial):b}"
    return "/proc/self/fd/" + "".join("./" if b == "1" else "/" for b in bits) + str(handle)
