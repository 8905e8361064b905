"""simplify: neutral, repeated and self-cancelling arithmetic."""
from __future__ import annotations

import pytest

from tests.passes.helpers import check, unchanged
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.simplify import exactly_holds, simplify
from tilewright.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, U64


def clean(g):
    return dce(simplify(g))


@pytest.mark.parametrize("line", [
    "%y = add(%x, @zero) : f32[2,3]", "%y = add(@zero, %x) : f32[2,3]", "%y = sub(%x, @zero) : f32[2,3]", "%y = mul(%x, @one) : f32[2,3]",
    "%y = mul(@one, %x) : f32[2,3]", "%y = div(%x, @one) : f32[2,3]", "%y = pow(%x, @one) : f32[2,3]", "%y = min(%x, @inf) : f32[2,3]",
    "%y = where(@true, %x, @zero) : f32[2,3]", "%y = cast(%x) {dtype=f32} : f32[2,3]", "%y = add(%x, @zeros) : f32[2,3]",
])
def test_neutral_operands_vanish(line):
    consts = {"zero": "f32[] = 0.0", "one": "f32[1] = [1.0]", "inf": "f32[] = inf", "true": "bool[] = true",
              "zeros": "f32[3] = [0.0, 0.0, 0.0]"}
    operands = line.replace(",", " ").replace(")", " ").split("(")[1].split()
    used = "\n".join(f"const @{k}: {v}" for k, v in consts.items() if f"@{k}" in operands)
    before = f"graph @g(%x: f32[2,3]) -> f32[2,3] {{\n{used}\n{line}\n%z = exp(%y) : f32[2,3]\nreturn %z\n}}\n".replace("\n\n", "\n")
    check(clean, before, "graph @g(%x: f32[2,3]) -> f32[2,3] {\n%z = exp(%x) : f32[2,3]\nreturn %z\n}\n")


def test_a_neutral_operand_that_broadcasts_leaves_an_expand():
    check(clean, """
        graph @g(%x: f32[3]) -> f32[2,3] {
          const @o: f32[2,1] = [1.0, 1.0]
          %y = mul(%x, @o) : f32[2,3]
          return %y
        }""", """
        graph @g(%x: f32[3]) -> f32[2,3] {
          %y = expand(%x) {shape=(2, 3)} : f32[2,3]
          return %y
        }""")


def test_float_zero_times_x_stays_and_integer_goes():
    unchanged(clean, """
        graph @g(%x: f32[3]) -> f32[3] {
          const @o: f32[] = 0.0
          %y = mul(%x, @o) : f32[3]
          return %y
        }""")
    check(clean, """
        graph @g(%x: i32[3], %z: i32[3]) -> i32[3] {
          const @o: i32[] = 0
          %y = mul(%x, @o) : i32[3]
          %w = sub(%z, %y) : i32[3]
          return %w
        }""", """
        graph @g(%x: i32[3], %z: i32[3]) -> i32[3] {
          return %z
        }""")


def test_only_powers_of_two_divide_as_products():
    check(clean, """
        graph @g(%x: f32[3]) -> f32[3] {
          const @eight: f32[] = 8.0
          const @three: f32[] = 3.0
          %y = div(%x, @eight) : f32[3]
          %z = div(%y, @three) : f32[3]
          return %z
        }""", """
        graph @g(%x: f32[3]) -> f32[3] {
          const @eighth: f32[] = 0.125
          const @three: f32[] = 3.0
          %y = mul(%x, @eighth) : f32[3]
          %z = div(%y, @three) : f32[3]
          return %z
        }""")


def test_powers_negations_and_repeats():
    check(clean, """
        graph @g(%x: f32[3], %y: f32[3]) -> (f32[3], f32[3], f32[3]) {
          const @two: f32[] = 2.0
          const @zero: f32[] = 0.0
          %a = pow(%x, @two) : f32[3]
          %n = neg(%y) : f32[3]
          %b = add(%a, %n) : f32[3]
          %m = neg(%n) : f32[3]
          %r = relu(%m) : f32[3]
          %s = relu(%r) : f32[3]
          %t = max(%x, @zero) : f32[3]
          return %b, %s, %t
        }""", """
        graph @g(%x: f32[3], %y: f32[3]) -> (f32[3], f32[3], f32[3]) {
          %a = mul(%x, %x) : f32[3]
          %b = sub(%a, %y) : f32[3]
          %r = relu(%y) : f32[3]
          %t = relu(%x) : f32[3]
          return %b, %r, %t
        }""")


def test_casts_merge_only_through_wider_types():
    check(clean, """
        graph @g(%x: f32[3]) -> (f32[3], f32[3]) {
          %a = cast(%x) {dtype=f64} : f64[3]
          %b = cast(%a) : f32[3]
          %c = cast(%x) {dtype=f16} : f16[3]
          %d = cast(%c) : f32[3]
          %e = exp(%b) : f32[3]
          return %e, %d
        }""", """
        graph @g(%x: f32[3]) -> (f32[3], f32[3]) {
          %c = cast(%x) {dtype=f16} : f16[3]
          %d = cast(%c) : f32[3]
          %e = exp(%x) : f32[3]
          return %e, %d
        }""")


@pytest.mark.parametrize(("wide", "narrow", "holds"), [
    (F64, F32, True), (F32, F64, False), (F32, F16, True), (F16, BF16, False), (I64, I32, True), (I32, U8, True), (U64, I8, False),
    (F32, I8, True), (F32, I32, False), (F64, I32, True), (F32, U8, True), (I8, BOOL, True), (BOOL, I8, False), (I64, F32, False),
])
def test_exactly_holds(wide, narrow, holds):
    assert exactly_holds(wide, narrow) is holds


def test_expands_and_uniform_literals_shrink_where_a_map_broadcasts_anyway():
    check(clean, """
        graph @g(%x: f32[2,3], %s: f32[1,3]) -> (f32[2,3], f32[2,3]) {
          const @c: f32[2,3] = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
          %e = expand(%s) {shape=(2, 3)} : f32[2,3]
          %a = add(%x, %e) : f32[2,3]
          %b = mul(%a, @c) : f32[2,3]
          %d = add(%e, %s) : f32[2,3]
          return %b, %d
        }""", """
        graph @g(%x: f32[2,3], %s: f32[1,3]) -> (f32[2,3], f32[2,3]) {
          const @c: f32[] = 2.0
          %e = expand(%s) {shape=(2, 3)} : f32[2,3]
          %a = add(%x, %s) : f32[2,3]
          %b = mul(%a, @c) : f32[2,3]
          %d = add(%e, %s) : f32[2,3]
          return %b, %d
        }""")
