"""Models, suites, results and their pages; the pages are opened in a browser where there is one."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

import tilewright as tw
from benchmarks import models
from benchmarks.__main__ import app
from benchmarks.markdown import results_md
from benchmarks.page import results_page
from benchmarks.results import failures, load, losses
from benchmarks.suites import suites
from tilewright.backends import html

from .synthetic import results

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars")


def test_round_trip(tmp_path: Path) -> None:
    r = results()
    r.save(tmp_path / "r.json")
    assert load(tmp_path / "r.json") == r
    (tmp_path / "r.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="version 0"):
        load(tmp_path / "r.json")


def test_summaries() -> None:
    r = results()
    assert [(s.name, c.model, x) for s, c, x in losses(r)] == [("cnn", "slow", 0.5)]
    assert {e for e, _, _ in failures(r)} == {"tilewright", "openvino"}
    assert r.suites[0].mean(1) == pytest.approx((1.2 * 0.5) ** 0.5)


def test_the_record_names_losses_and_failures() -> None:
    text = results_md(results())
    for part in ("## Where we lose", "| cnn | slow | 1 | 0.50 | openvino |", "A <processor>", "no <such> thing", "odd\\|one", "jax"):
        assert part in text
    assert "not quiet" not in text


def test_pages_stand_alone() -> None:
    page = results_page(results())
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert page.count("<svg") == page.count("</svg>") > 5 and "A &lt;processor&gt;" in page and "prefers-color-scheme:dark" in page


def test_every_suite_has_cases_and_every_model_one_name() -> None:
    found = suites(4)
    assert list(found) == ["cnn", "transformer", "ocr", "kernels", "calls", "compile-time", "memory", "scaling"]
    assert all(s.cases for s in found.values())
    assert [c.point["threads"] for c in found["scaling"].cases if c.model == "resnet50"] == [1, 2, 4]


@pytest.mark.parametrize("name", ["kernels", "calls"])
def test_small_models_are_valid(name: str) -> None:
    for c in suites(1)[name].cases:
        model, inputs = c.build()
        onnx.checker.check_model(model, full_check=True)
        assert len(inputs) == len(model.graph.input)


def test_mobilenet_runs(tmp_path: Path) -> None:
    path, inputs = models.load("mobilenet_v2", models.mobilenet_v2, tmp_path)
    again, same = models.load("mobilenet_v2", lambda: pytest.fail("made twice"), tmp_path)
    assert again == path and np.array_equal(inputs[0], same[0])
    assert [d.dim_value for d in onnx.load(path).graph.output[0].type.tensor_type.shape.dim] == [1, 1000]


def test_classic_models_have_random_weights() -> None:
    model, (image,) = models.classic("squeezenet")
    assert image.shape == (1, 3, 224, 224) and not [n for n in model.graph.node if n.op_type == "ConstantOfShape"]
    weights = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer]
    assert all(np.ptp(w) > 0 for w in weights if w.ndim == 4)


def test_the_command_lists_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.models.user_cache_path", lambda _: tmp_path / "cache")
    run = CliRunner().invoke
    assert "shufflenet" in run(app, ["--list", "cnn"]).stdout
    assert run(app, ["nonsense"]).exit_code == 2 and run(app, ["--peers", "nonsense"]).exit_code == 2
    out = str(tmp_path / "out")
    done = run(app, ["calls", "--models", "add 16", "--peers", "onnxruntime", "--rounds", "1", "--seconds", "0.01", "--output", out])
    assert done.exit_code == 0 and "add 16" in done.stdout, done.output
    assert load(tmp_path / "out" / "results.json").suites[0].comparisons[0].of("numpy")
    assert run(app, ["--again", out + "/results.json", "--output", str(tmp_path / "again")]).exit_code == 0
    assert (tmp_path / "again" / "results.html").read_text() == (tmp_path / "out" / "results.html").read_text()


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of Chromium; where CI is set, it has to be there."""
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if not found:
        if os.environ.get("CI"):
            pytest.fail("CI needs Chromium")
        pytest.skip("Chromium is not installed")
    return found


def picture(browser: str, page: Path, folder: Path, dark: bool) -> Image.Image:
    """The page as the browser shows it."""
    shot = folder / f"shot{int(dark)}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run([browser, *FLAGS, scheme, f"--user-data-dir={folder / f'profile{int(dark)}'}", "--window-size=1000,1400",
                           f"--screenshot={shot}", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert shot.exists(), done.stderr
    return Image.open(shot).convert("RGB")


def check_in_browser(browser: str, page: Path, folder: Path) -> None:
    """Both schemes: the background is light or dark, and text and marks stand out against it."""
    for dark in (False, True):
        image = picture(browser, page, folder, dark)
        ground = image.getpixel((2, 2))
        assert isinstance(ground, tuple) and (sum(ground) < 200 if dark else sum(ground) > 650)
        grey = np.asarray(image.convert("L"), np.int32)
        assert (np.abs(grey - grey[2, 2]) > 80).mean() > 0.005
    done = subprocess.run([browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()], capture_output=True,
                          text=True, timeout=120)
    assert done.stdout.count("<svg") > 0 and "NaN" not in done.stdout


def test_results_in_a_browser(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "results.html"
    page.write_text(results_page(results()), encoding="utf-8")
    check_in_browser(browser, page, tmp_path)


def test_explain_in_a_browser(browser: str, tmp_path: Path) -> None:
    path, inputs = models.load("p", lambda: models.perceptron(3, (8, 16, 4)), tmp_path)
    exe = tw.compile(str(path), cache=False)
    exe.profile(inputs, seconds=0.0)
    exe.explain().to_html(tmp_path / "explain.html")
    check_in_browser(browser, tmp_path / "explain.html", tmp_path)


def test_charts_take_what_there_is() -> None:
    assert html.bars([]) == "" and html.chart((), (), "x", "y") == ""
    one = html.chart((html.Line("only", ((1.0, 1.0),)),), (), "x", "y", log=False)
    assert "only" in one and "nan" not in one.lower()
    assert "circle" in html.roofline(10.0, 1e9, [html.Dot(2.0, 1.0, "a <dot>")]) and html.flow([]) == ([], 34)
    assert len(html.flow([(), (0,), (0, 1), (), (2, 3)])[0]) == 5
