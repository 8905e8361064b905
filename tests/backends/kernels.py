"""Small handwritten kernels, for tests that need machine code and no compiler."""
from __future__ import annotations


def binary_f32(symbol: str, n: int, op: str = "fadd") -> str:
    """out[i] = a[i] op b[i] for n elements. It has one trip."""
    return f"""
define void @{symbol}(ptr %a, ptr %b, ptr %out, ptr %workspace, i64 %begin, i64 %end, ptr %ctx) nounwind {{
entry:
  br label %head
head:
  %i = phi i64 [0, %entry], [%next, %body]
  %go = icmp slt i64 %i, {n}
  br i1 %go, label %body, label %done
body:
  %pa = getelementptr float, ptr %a, i64 %i
  %pb = getelementptr float, ptr %b, i64 %i
  %po = getelementptr float, ptr %out, i64 %i
  %x = load float, ptr %pa
  %y = load float, ptr %pb
  %z = {op} float %x, %y
  store float %z, ptr %po
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}}
"""


def table_f32(symbol: str, n: int) -> str:
    """out[i] = table[index[i]] with a constant table of 4 floats, 16 bytes of it copied through the workspace; index is
    i64; an index out of range sets the error flag."""
    return f"""
@table = internal constant [4 x float] [float 1.5, float 2.5, float 3.5, float 4.5]
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
define void @{symbol}(ptr %index, ptr %out, ptr %workspace, i64 %begin, i64 %end, ptr %ctx) nounwind {{
entry:
  call void @llvm.memcpy.p0.p0.i64(ptr %workspace, ptr @table, i64 16, i1 false)
  br label %head
head:
  %i = phi i64 [0, %entry], [%next, %join]
  %go = icmp slt i64 %i, {n}
  br i1 %go, label %body, label %done
body:
  %pi = getelementptr i64, ptr %index, i64 %i
  %k = load i64, ptr %pi
  %ok = icmp ult i64 %k, 4
  br i1 %ok, label %good, label %bad
bad:
  store i64 1, ptr %ctx
  br label %join
good:
  %pt = getelementptr float, ptr %workspace, i64 %k
  %v = load float, ptr %pt
  %po = getelementptr float, ptr %out, i64 %i
  store float %v, ptr %po
  br label %join
join:
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}}
"""
