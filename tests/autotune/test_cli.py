"""`tilewright tune`, `replay` and `log`: what they print, and their exit codes."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.autotune.programs import mlp
from tests.test_cli import Run, cli

__all__ = ["cli"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return mlp(tmp_path / "m.onnx")


def test_tune_replay_and_log(cli: Run, model: Path, tmp_path: Path) -> None:
    log, page = tmp_path / "t.jsonl", tmp_path / "t.html"
    code, out, err = cli("tune", model, "--log", log, "--trials", 6, "--threads", 1, "--report", page)
    assert code == 0, err
    assert "6 trials" in out
    assert "softmax" in out
    assert "6 of 6 trials" in err
    assert "Tuning curves" in page.read_text()
    code, out, _ = cli("replay", log, "--model", model, "--strict")
    assert code == 0
    assert "3 applied, 0 adapted, 0 rejected, 0 missing" in out
    code, out, _ = cli("replay", log, "--model", model, "--measure")
    assert code == 0
    assert "drift" in out
    assert "%" in out
    code, out, _ = cli("log", "show", log)
    assert code == 0
    assert out.count("\n") == 5  # a heading, three tasks, the model
    code, out, _ = cli("log", "best", log)
    assert len([json.loads(x) for x in out.splitlines()]) == 4
    assert cli("log", "merge", log, log, "-o", tmp_path / "m.jsonl")[0] == 0
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 7
    assert cli("log", "prune", tmp_path / "m.jsonl")[0] == 0
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) <= 7
    assert "3 applied" in cli("replay", tmp_path / "m.jsonl", "--model", model)[1]
    code, out, _ = cli("run", model, "--random", 0, "--schedules", log, "--threads", 1)
    assert code == 0


def test_strict_replay_fails_where_a_record_is_missing(cli: Run, model: Path, tmp_path: Path) -> None:
    log = tmp_path / "t.jsonl"
    log.write_text("")
    code, out, _ = cli("replay", log, "--model", model, "--strict")
    assert code == 1
    assert "0 applied, 0 adapted, 0 rejected, 3 missing" in out
    assert cli("replay", log, "--model", model)[0] == 0


@pytest.mark.parametrize("args", [("tune", "MODEL", "--trials", "0"), ("tune", "MODEL", "--log", "/no/such/folder/t.jsonl"),
                                  ("tune", "MODEL", "--report", "/no/such/folder/t.html"), ("replay", "none.jsonl", "--model", "MODEL"),
                                  ("log", "show", "none.jsonl"), ("tune", "MODEL", "--target", "z80")])
def test_bad_usage(cli: Run, model: Path, args: tuple[str, ...]) -> None:
    code, _, err = cli(*(model if a == "MODEL" else a for a in args))
    assert code == 2
    assert err


def test_other_machines_need_a_pool(cli: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = cli("tune", model, "--target", "aarch64", "--log", tmp_path / "t.jsonl")
    assert code == 1
    assert "pool=" in err
