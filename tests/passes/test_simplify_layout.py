"""simplify_layout: ops that only move elements."""
from __future__ import annotations

import pytest

from tests.passes.helpers import check, unchanged
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.simplify_layout import simplify_layout


def clean(g):
    return dce(simplify_layout(g))


@pytest.mark.parametrize(("lines", "after"), [
    ("%a = reshape(%x) {shape=(6, 4)} : f32[6,4]\n%y = reshape(%a) {shape=(4, 6)} : f32[4,6]",
     "%y = reshape(%x) {shape=(4, 6)} : f32[4,6]"),
    ("%a = transpose(%x) {perm=(2, 0, 1)} : f32[4,2,3]\n%y = transpose(%a) {perm=(2, 1, 0)} : f32[3,2,4]",
     "%y = transpose(%x) {perm=(1, 0, 2)} : f32[3,2,4]"),
    ("%a = slice(%x) {starts=(0, 2, 1), steps=(1, -1, 2), sizes=(2, 3, 2)} : f32[2,3,2]\n"
     "%y = slice(%a) {starts=(1, 0, 0), steps=(1, 2, 1), sizes=(1, 2, 2)} : f32[1,2,2]",
     "%y = slice(%x) {starts=(1, 2, 1), steps=(1, -2, 2), sizes=(1, 2, 2)} : f32[1,2,2]"),
    ("%a = pad(%x) {before=(1, 0, 0), after=(0, 0, 2)} : f32[3,3,6]\n%y = pad(%a) {before=(0, 1, 0), after=(0, 0, 1)} : f32[3,4,7]",
     "%y = pad(%x) {before=(1, 1, 0), after=(0, 0, 3), value=0} : f32[3,4,7]"),
    ("%a = concat(%x, %x) {axis=1} : f32[2,6,4]\n%y = concat(%a, %x) {axis=1} : f32[2,9,4]",
     "%y = concat(%x, %x, %x) {axis=1} : f32[2,9,4]"),
    ("%a = expand(%x) {shape=(1, 2, 3, 4)} : f32[1,2,3,4]\n%y = expand(%a) {shape=(5, 2, 3, 4)} : f32[5,2,3,4]",
     "%y = expand(%x) {shape=(5, 2, 3, 4)} : f32[5,2,3,4]"),
    ("%y = expand(%x) {shape=(1, 2, 3, 4)} : f32[1,2,3,4]", "%y = reshape(%x) {shape=(1, 2, 3, 4)} : f32[1,2,3,4]"),
])
def test_chains_merge(lines, after):
    shape = lines.rsplit(": ", 1)[1]
    check(clean, f"graph @g(%x: f32[2,3,4]) -> {shape} {{\n{lines}\nreturn %y\n}}\n",
          f"graph @g(%x: f32[2,3,4]) -> {shape} {{\n{after}\nreturn %y\n}}\n")


@pytest.mark.parametrize("line", [
    "%y = reshape(%x) {shape=(2, 3, 4)} : f32[2,3,4]",
    "%y = transpose(%x) {perm=(0, 1, 2)} : f32[2,3,4]",
    "%y = slice(%x) {starts=(0, 0, 0), steps=(1, 1, 1), sizes=(2, 3, 4)} : f32[2,3,4]",
    "%y = pad(%x) {before=(0, 0, 0), after=(0, 0, 0)} : f32[2,3,4]",
    "%y = concat(%x) {axis=1} : f32[2,3,4]",
    "%y = expand(%x) {shape=(2, 3, 4)} : f32[2,3,4]",
    "%a = transpose(%x) {perm=(1, 0, 2)} : f32[3,2,4]\n%y = transpose(%a) {perm=(1, 0, 2)} : f32[2,3,4]",
    "%a = slice(%x) {starts=(0, 0, 0), steps=(1, 1, 1), sizes=(2, 1, 4)} : f32[2,1,4]\n"
    "%b = slice(%x) {starts=(0, 1, 0), steps=(1, 1, 1), sizes=(2, 2, 4)} : f32[2,2,4]\n%y = concat(%a, %b) {axis=1} : f32[2,3,4]",
])
def test_what_does_nothing_vanishes(line):
    check(clean, f"graph @g(%x: f32[2,3,4]) -> f32[2,3,4] {{\n{line}\n%z = exp(%y) : f32[2,3,4]\nreturn %z\n}}\n",
          "graph @g(%x: f32[2,3,4]) -> f32[2,3,4] {\n%z = exp(%x) : f32[2,3,4]\nreturn %z\n}\n")


def test_moving_unit_dimensions_is_a_reshape():
    check(clean, """
        graph @g(%x: f32[1,3,1,4]) -> f32[3,4,1,1] {
          %y = transpose(%x) {perm=(1, 3, 0, 2)} : f32[3,4,1,1]
          return %y
        }""", """
        graph @g(%x: f32[1,3,1,4]) -> f32[3,4,1,1] {
          %y = reshape(%x) {shape=(3, 4, 1, 1)} : f32[3,4,1,1]
          return %y
        }""")


def test_a_slice_reaches_through_a_concat():
    check(clean, """
        graph @g(%x: f32[2,3], %y: f32[2,4]) -> (f32[2,2], f32[2,4], f32[2,3]) {
          %c = concat(%x, %y) {axis=1} : f32[2,7]
          %a = slice(%c) {starts=(0, 4), steps=(1, 2), sizes=(2, 2)} : f32[2,2]
          %b = slice(%c) {starts=(0, 3), steps=(1, 1), sizes=(2, 4)} : f32[2,4]
          %d = slice(%c) {starts=(0, 2), steps=(1, 1), sizes=(2, 3)} : f32[2,3]
          return %a, %b, %d
        }""", """
        graph @g(%x: f32[2,3], %y: f32[2,4]) -> (f32[2,2], f32[2,4], f32[2,3]) {
          %c = concat(%x, %y) {axis=1} : f32[2,7]
          %a = slice(%y) {starts=(0, 1), steps=(1, 2), sizes=(2, 2)} : f32[2,2]
          %d = slice(%c) {starts=(0, 2), steps=(1, 1), sizes=(2, 3)} : f32[2,3]
          return %a, %y, %d
        }""")


def test_transposes_cancel_around_maps():
    check(clean, """
        graph @g(%x: f32[2,3,4]) -> f32[2,3,4] {
          const @one: f32[] = 1.0
          %a = transpose(%x) {perm=(0, 2, 1)} : f32[2,4,3]
          %b = relu(%a) : f32[2,4,3]
          %c = add(@one, %b) : f32[2,4,3]
          %d = transpose(%c) {perm=(0, 2, 1)} : f32[2,3,4]
          return %d
        }""", """
        graph @g(%x: f32[2,3,4]) -> f32[2,3,4] {
          const @one: f32[] = 1.0
          %b = relu(%x) : f32[2,3,4]
          %c = add(@one, %b) : f32[2,3,4]
          return %c
        }""")


def test_transposes_around_a_shared_or_broadcasting_map_stay():
    unchanged(clean, """
        graph @g(%x: f32[2,3,4], %s: f32[3]) -> (f32[2,3,4], f32[2,3,4], f32[2,4,3]) {
          %a = transpose(%x) {perm=(0, 2, 1)} : f32[2,4,3]
          %b = relu(%a) : f32[2,4,3]
          %d = transpose(%b) {perm=(0, 2, 1)} : f32[2,3,4]
          %e = add(%a, %s) : f32[2,4,3]
          %f = transpose(%e) {perm=(0, 2, 1)} : f32[2,3,4]
          return %d, %f, %b
        }""")


@pytest.mark.parametrize(("index", "sliced"), [
    ("i64[] = -1", "{starts=(0, 2, 0), steps=(1, 1, 1), sizes=(2, 1, 4)}"),
    ("i64[2] = [2, 0]", "{starts=(0, 2, 0), steps=(1, -2, 1), sizes=(2, 2, 4)}"),
])
def test_evenly_spaced_gathers_are_slices(index, sliced):
    scalar = "[]" in index
    out = "f32[2,4]" if scalar else "f32[2,2,4]"
    reshaped = "%y = reshape(%s) {shape=(2, 4)} : f32[2,4]\nreturn %y" if scalar else "return %s"
    check(clean, f"graph @g(%x: f32[2,3,4]) -> {out} {{\nconst @i: {index}\n%y = gather(%x, @i) {{axis=1}} : {out}\nreturn %y\n}}\n",
          f"graph @g(%x: f32[2,3,4]) -> {out} {{\n%s = slice(%x) {sliced} : f32[2,{1 if scalar else 2},4]\n{reshaped}\n}}\n")


def test_other_gathers_stay():
    unchanged(clean, """
        graph @g(%x: f32[2,3,4]) -> (f32[2,3,4], f32[2,2,4]) {
          const @i: i64[3] = [0, 2, 1]
          const @j: i64[2] = [1, 1]
          %y = gather(%x, @i) {axis=1} : f32[2,3,4]
          %z = gather(%x, @j) {axis=1} : f32[2,2,4]
          return %y, %z
        }""")


def test_zeros_around_a_convolutions_input_are_its_padding():
    check(clean, """
        graph @g(%x: f32[1,2,4,4]) -> (f32[1,3,4,4], f32[1,3,4,4]) {
          const @w: f32[3,2,3,3] weight
          %p = pad(%x) {before=(0, 0, 1, 0), after=(0, 0, 0, 1), value=0.0} : f32[1,2,5,5]
          %y = conv(%p, @w) {strides=(1, 1), pads=(0, 1, 1, 0), dilations=(1, 1)} : f32[1,3,4,4]
          %q = pad(%x) {before=(0, 0, 1, 0), after=(0, 0, 0, 1), value=1.0} : f32[1,2,5,5]
          %z = conv(%q, @w) {strides=(1, 1), pads=(0, 1, 1, 0), dilations=(1, 1)} : f32[1,3,4,4]
          return %y, %z
        }""", """
        graph @g(%x: f32[1,2,4,4]) -> (f32[1,3,4,4], f32[1,3,4,4]) {
          const @w: f32[3,2,3,3] weight
          %y = conv(%x, @w) {strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1)} : f32[1,3,4,4]
          %q = pad(%x) {before=(0, 0, 1, 0), after=(0, 0, 0, 1), value=1.0} : f32[1,2,5,5]
          %z = conv(%q, @w) {strides=(1, 1), pads=(0, 1, 1, 0), dilations=(1, 1)} : f32[1,3,4,4]
          return %y, %z
        }""")


def test_reducing_unit_dimensions_is_a_reshape():
    check(clean, """
        graph @g(%x: f32[1,3,1]) -> (f32[3], f32[1,3,1]) {
          %y = reduce(%x) {kind="mean", axes=(0, 2), keepdims=0} : f32[3]
          %z = reduce(%x) {kind="l2", axes=(0,)} : f32[1,3,1]
          return %y, %z
        }""", """
        graph @g(%x: f32[1,3,1]) -> (f32[3], f32[1,3,1]) {
          %y = reshape(%x) {shape=(3,)} : f32[3]
          %z = reduce(%x) {kind="l2", axes=(0,)} : f32[1,3,1]
          return %y, %z
        }""")


def test_maps_of_a_squeezed_convolution_join_it():
    check(clean, """
        graph @g(%x: f32[1,2,4,1]) -> f32[1,3,4] {
          const @w: f32[3,2,1,1] weight
          const @b: f32[1,3,1] weight
          %c = conv(%x, @w) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,3,4,1]
          %s = reshape(%c) {shape=(1, 3, 4)} : f32[1,3,4]
          %a = add(%s, @b) : f32[1,3,4]
          %y = relu(%a) : f32[1,3,4]
          return %y
        }""", """
        graph @g(%x: f32[1,2,4,1]) -> f32[1,3,4] {
          const @w: f32[3,2,1,1] weight
          const @b: f32[1,3,1] weight
          %c = conv(%x, @w) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,3,4,1]
          %r = reshape(@b) {shape=(1, 3, 1, 1)} : f32[1,3,1,1]
          %a = add(%c, %r) : f32[1,3,4,1]
          %z = relu(%a) : f32[1,3,4,1]
          %y = reshape(%z) {shape=(1, 3, 4)} : f32[1,3,4]
          return %y
        }""")


def test_squeezed_results_that_others_read_stay():
    unchanged(clean, """
        graph @g(%x: f32[1,2,4,1]) -> (f32[1,3,4], f32[1,3,4]) {
          const @w: f32[3,2,1,1] weight
          %c = conv(%x, @w) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,3,4,1]
          %s = reshape(%c) {shape=(1, 3, 4)} : f32[1,3,4]
          %y = relu(%s) : f32[1,3,4]
          return %y, %s
        }""")
