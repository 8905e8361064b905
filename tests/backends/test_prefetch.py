"""What microkernels fetch ahead: every line of an image before the tile that reads it, and little else."""
from __future__ import annotations

import ctypes
import math
import re

import numpy as np
import pytest

from tests.backends.test_microkernels import conv
from tilewright.backends.llvm.emit import emit_kernel, parallel_extent, workspace_bytes
from tilewright.backends.llvm.jit import compile_ir, load
from tilewright.backends.memory import address, aligned
from tilewright.backends.target import Target
from tilewright.compiler.inspect import lowered
from tilewright.ir.loops import Scheduled

LINE, MOST = 64, 1 << 22
LOG = f"""
@seen = global i64 0
@log = global [{MOST} x i64] zeroinitializer
define void @note(ptr %p) {{
  %n = load i64, ptr @seen
  %at = getelementptr i64, ptr @log, i64 %n
  %v = ptrtoint ptr %p to i64
  store i64 %v, ptr %at
  %next = add i64 %n, 1
  store i64 %next, ptr @seen
  ret void
}}
define i64 @noted(i64 %k) {{
  %at = getelementptr i64, ptr @log, i64 %k
  %v = load i64, ptr %at
  ret i64 %v
}}
define i64 @count() {{
  %n = load i64, ptr @seen
  ret i64 %n
}}
"""


def fetched(s: Scheduled, target: Target, buffer: str) -> tuple[np.ndarray, int]:
    """(line of `buffer` of each prefetch, in order, those elsewhere left out; how many lines it has) over one run of the kernel."""
    text = emit_kernel(s, target, "kernel")
    text = re.sub(r'call void @"?llvm\.prefetch\.p0"?\(ptr ([^,]+),[^)]*\)', r"call void @note(ptr \1)", text)
    text = re.sub(r'declare void @"?llvm\.prefetch[^\n]*\n', "", text)
    library = load([compile_ir(text + LOG, target)], ["kernel", "count", "noted"], target)
    buffers = [*s.program.inputs, *s.program.outputs]
    kept = [aligned(math.prod(b.shape) * b.dtype.bytes + LINE) for b in buffers] + [aligned(workspace_bytes(s) + LINE)]
    for k in kept:
        k[...] = 0
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(kept), ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    kernel = signature(library.address("kernel"))
    context = np.zeros(64, np.int64)
    kernel(*(address(k) for k in kept), 0, max(1, parallel_extent(s)), context.ctypes.data)
    count = ctypes.CFUNCTYPE(ctypes.c_int64)(library.address("count"))()
    noted = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(library.address("noted"))
    assert 0 < count < MOST
    at = next(k for k, b in enumerate(buffers) if b.name == buffer)
    lines = (np.array([noted(k) for k in range(count)]) - address(kept[at])) // LINE
    total = math.prod(buffers[at].shape) * buffers[at].dtype.bytes // LINE
    return lines[(lines >= 0) & (lines < total)], total


@pytest.mark.parametrize("shape", [(2048, 512, 7, 1), (1024, 512, 14, 1), (512, 512, 14, 3, 2)], ids=["1x1", "two tiles", "3x3 by 2"])
def test_all_lines_of_an_image_but_the_first_tiles(shape: tuple[int, ...]) -> None:
    target = Target.host()
    of_images = [(s, b.name) for s in lowered(conv(*shape), target).scheduled if s is not None and s.stages[0].prefetch
                 for b in s.program.inputs if b.name in {name for name, _ in s.stages[0].prefetch} and not b.name.endswith("_packed")]
    for s, name in of_images:
        lines, total = fetched(s, target, name)
        channels = next(b.shape[0] for b in s.program.inputs if b.name == name)
        per_block = total // channels
        first = int(lines.min())  # lines before it are of the first tile; what runs over a block's end touches the next one's
        assert first <= per_block // 2
        wanted = {block * per_block + k for block in range(channels) for k in range(first, per_block)}
        assert wanted <= set(lines.tolist()), "a line that is read later was never fetched"
    if target.has_masks and target.l2 <= 1 << 21:
        assert of_images
