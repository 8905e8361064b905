"""Every form of a Winograd convolution: both tiles, the steps apart and in strips, whole and ragged, on one thread and on two."""
from __future__ import annotations

import numpy as np
import pytest

from tests.compiler.test_winograd import conv_graph, exact
from tests.compiler.test_winograd import run as call
from tilewright.backends.target import Target
from tilewright.compiler.compile import compile
from tilewright.compiler.passes import layout
from tilewright.compiler.passes.winograd_choice import Form, Layer, best_form, forms
from tilewright.compiler.schedule.default import default_schedule
from tilewright.ir.graph import Attrs
from tilewright.ir.op import OPS
from tilewright.ir.ops.winograd_tiles import transform

STATED = {2: 2e-6, 4: 3e-5}  # docs/accuracy.md, of the largest result
FORMS = [Form(2, 0), Form(2, 3), Form(4, 0), Form(4, 1), Form(4, 2)]


@pytest.mark.parametrize("i", [64, 512])
@pytest.mark.parametrize("positive", [False, True])
def test_tiles_of_two_err_no_more_than_direct_sums(i, positive, monkeypatch):
    rng = np.random.default_rng(i)
    x, k = (rng.standard_normal(s).astype("f4") for s in ((1, i, 14, 14), (32, i, 3, 3)))
    x, bias = np.maximum(x, 0) if positive else x, np.zeros(32, "f4")
    got = run(conv_graph(1, i, 32, 14, 14, (1, 1, 1, 1), k, bias), x, Form(2, 0), monkeypatch)
    want = exact(x, k, bias, (1, 1, 1, 1))
    assert np.abs(got - want).max() <= STATED[2] * np.abs(want).max()


def run(graph, x, form: Form, monkeypatch, target="native", threads=1) -> np.ndarray:
    monkeypatch.setattr(layout, "best_form", lambda *_: form)
    exe = compile(graph, cache=False, target=target, threads=threads)
    labels = " ".join(c.label for c in exe.instances()[0].plan.calls)
    assert ("conv_winograd" if form.rows else "winograd_multiply") in labels
    return call(exe, x)


@pytest.mark.parametrize(("n", "i", "o", "h", "w", "pads"), [
    (2, 35, 40, 9, 13, (1, 1, 1, 1)), (1, 33, 32, 21, 7, (2, 0, 1, 1)), (3, 48, 32, 7, 8, (0, 1, 2, 0)),
    (1, 17, 19, 4, 3, (1, 1, 1, 1))])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_stays_within_what_is_stated(n, i, o, h, w, pads, form, monkeypatch):
    rng = np.random.default_rng(i * h + o)
    x, k, bias = (rng.standard_normal(s).astype("f4") for s in ((n, i, h, w), (o, i, 3, 3), (o,)))
    want = exact(x, k, bias, pads)
    got = run(conv_graph(n, i, o, h, w, pads, k, bias), x, form, monkeypatch)
    assert np.abs(got - want).max() <= STATED[form.tile] * np.abs(want).max()


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("form", [Form(2, 0), Form(2, 2), Form(4, 0), Form(4, 2)], ids=str)
def test_other_vector_widths(target, form, monkeypatch):
    rng = np.random.default_rng(7)
    x, k, bias = (rng.standard_normal(s).astype("f4") for s in ((1, 20, 11, 10), (24, 20, 3, 3), (24,)))
    want = exact(x, k, bias, (1, 1, 1, 1))
    got = run(conv_graph(1, 20, 24, 11, 10, (1, 1, 1, 1), k, bias), x, form, monkeypatch, target)
    assert np.abs(got - want).max() <= STATED[form.tile] * np.abs(want).max()


@pytest.mark.parametrize("tile", [2, 4])
def test_bits_do_not_depend_on_threads_or_strips(tile, monkeypatch):
    rng = np.random.default_rng(3)
    x, k, bias = (rng.standard_normal(s).astype("f4") for s in ((2, 40, 30, 41), (48, 40, 3, 3), (48,)))
    graph = conv_graph(2, 40, 48, 30, 41, (1, 1, 1, 1), k, bias)
    first = run(graph, x, Form(tile, 1), monkeypatch)
    for rows, threads in ((1, 2), (2, 2), (3, 1), (0, 2), (0, 1)):
        np.testing.assert_array_equal(run(graph, x, Form(tile, rows), monkeypatch, threads=threads), first)


@pytest.mark.parametrize("form", [Form(2, 0), Form(2, 2), Form(4, 0), Form(4, 2)], ids=str)
def test_what_is_not_finite_reaches_only_what_reads_it(form, monkeypatch):
    rng = np.random.default_rng(5)
    x, k, bias = (rng.standard_normal(s).astype("f4") for s in ((1, 32, 13, 14), (32, 32, 3, 3), (32,)))
    x[0, 3, 5, 6], x[0, 30, 12, 0], x[0, 0, 0, 13] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        want = exact(x, k, bias, (1, 1, 1, 1))
    got = run(conv_graph(1, 32, 32, 13, 14, (1, 1, 1, 1), k, bias), x, form, monkeypatch)
    fine = np.isfinite(want)
    np.testing.assert_array_equal(got[~fine], want[~fine])
    assert np.abs(got[fine] - want[fine]).max() <= STATED[form.tile] * np.abs(want[fine]).max()


@pytest.mark.parametrize("tile", [2, 4])
def test_matrices_are_those_of_a_minimal_filter(tile):
    """A' ((G w) * (B' d)) is the sum of the window, in exact arithmetic for small integers."""
    f = transform(tile)
    a, b, g = (np.array(m, "f8") for m in (f.a_t, f.b_t, f.g))
    rng = np.random.default_rng(0)
    d, w = rng.integers(-9, 9, f.span).astype("f8"), rng.integers(-9, 9, 3).astype("f8")
    np.testing.assert_allclose(a @ ((g @ w) * (b @ d)), np.convolve(d, w[::-1], "valid"), rtol=1e-13)


def test_large_images_go_in_strips_and_large_weights_do_not():
    target = Target.parse("x86-64-v4")
    wide, heavy = best_form(Layer(1, 64, 64, 224, 224), target), best_form(Layer(1, 512, 512, 28, 28), target)
    assert wide is not None and wide.tile == 4 and 0 < wide.rows <= 8
    assert heavy is not None and heavy.tile == 4 and heavy.rows == 0
    assert best_form(Layer(1, 3, 8, 20, 20), target) is None
    assert list(forms(Layer(1, 8, 8, 17, 17), 4)) == [Form(4, 0), Form(4, 1), Form(4, 2), Form(4, 3), Form(4, 5)]


@pytest.mark.parametrize("name", ["native", "x86-64", "x86-64-v3", "aarch64"])
def test_the_algorithm_does_not_depend_on_threads(name):
    target = Target.parse(name)
    for layer in (Layer(1, 64, 64, 56, 56), Layer(1, 256, 256, 14, 14), Layer(1, 512, 512, 7, 7), Layer(4, 32, 48, 30, 17)):
        found = [best_form(layer, target, threads) for threads in (1, 2, 7, 64)]
        assert len({f and f.tile for f in found}) == 1


def test_strips_share_one_loop_and_their_memory_is_a_threads_own():
    from tests.ir.op_graphs import op_graph
    from tilewright.backends.llvm.emit import parallel_extent, workspace_bytes
    from tilewright.compiler.build import Options, lower_graph
    op = OPS["conv_winograd"]
    sample = next(iter(op.samples()))
    assert isinstance(sample.attrs, Attrs)
    low = lower_graph(op_graph(op, [sample], weights=True)[0], Options(Target.parse("native")))
    (s,) = [s for s in low.scheduled if s is not None and len(s.stages) == 5]
    assert [st.shared for st in s.stages] == [0, 4, 2, 2, 5]
    assert s.stages[2].tensorize is not None and s.packs
    assert parallel_extent(s) == 2 and workspace_bytes(s) > 0  # two images of one strip
    assert default_schedule(s.program, Target.parse("native")) is not None
