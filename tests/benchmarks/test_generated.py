"""Generated tasks: the same in every process, of all kinds that models bring, and none of those that the model is judged by."""
from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from benchmarks import generated, pretrain, trials
from benchmarks.generated import JUDGED, KINDS, AnyWay, graph, tasks
from tilewright.autotune.cost_model import CostModel
from tilewright.autotune.space import Space
from tilewright.autotune.task import Task
from tilewright.backends.target import Target
from tilewright.compiler.build import lower_graph, make_options
from tilewright.errors import ScheduleError

SEEDS = range(120)


@cache
def found() -> tuple[Task, ...]:
    return tuple(t for seed in SEEDS for t in tasks(seed, Target.parse("x86-64-v4")))


def test_a_seed_is_always_the_same_layer() -> None:
    for seed in range(12):
        assert [t.workload for t in tasks(seed, Target.parse("x86-64-v4"))] == [t.workload for t in tasks(seed, Target.parse("x86-64-v4"))]
        assert str(graph(seed)) == str(graph(seed))


def test_every_kind_of_kernel_is_among_them() -> None:
    labels = Counter(t.label for t in found())
    sketches = Counter(Space(t).sketches[0].name for t in found())
    for part in ("conv_direct", "conv_winograd", "winograd_multiply", "conv_depthwise", "matmul", "softmax", "layer_norm", "reduce",
                 "pool"):
        assert any(part in label for label in labels), part
    assert {"contraction", "rows", "strips"} <= set(sketches)
    assert any("passes" in {k.name for k in s.knobs if len(k.options) > 1} for t in found() for s in Space(t).sketches)


def test_what_the_model_is_judged_by_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seed, task = next((s, t) for s in range(100) for t in tasks(s, Target.parse("x86-64-v4")))
    judged = tmp_path / "judged.jsonl"
    judged.write_text(json.dumps({"workload": task.workload}) + "\n")
    monkeypatch.setattr(generated, "JUDGED", judged)
    generated._judged.cache_clear()
    try:
        assert task.workload not in {t.workload for t in tasks(seed, Target.parse("x86-64-v4"))}
    finally:
        generated._judged.cache_clear()
    assert JUDGED.exists()


def test_sites_are_computed_in_several_ways() -> None:
    """The same layer under other draws: not always the heuristic's way."""
    def ways(seed: int, source: AnyWay | None = None) -> list[str]:
        return [d.option for _, d in lower_graph(graph(seed), make_options("x86-64-v4", 1, "f32", source, True)).sites]
    seed = next(s for s in range(100) if ways(s))
    assert len({o for k in range(20) for o in ways(seed, AnyWay(random.Random(k)))}) > 1


def test_kinds_have_weights() -> None:
    assert all(w > 0 for w, _ in KINDS) and len({k for _, k in KINDS}) == len(KINDS)


def test_a_default_that_is_too_long_to_time_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = replace(next(t for t in found() if t.label == "softmax"), target=Target.host())
    monkeypatch.setattr(trials, "MOST_IR", 10)
    with pytest.raises(ScheduleError, match="too long to time"):
        trials.Trials(task)
    assert pretrain._collect_task(task, tmp_path / "data.jsonl", None, None) == 0
    assert not (tmp_path / "data.jsonl").exists()


def test_what_is_collected_trains_a_model_that_is_the_same_each_time(tmp_path: Path) -> None:
    out = tmp_path / "data.jsonl"
    small = [t for t in found() if "softmax" in t.label and t.work.bytes < 2e5][:2]
    for t in small:
        assert pretrain._collect_task(replace(t, target=Target.host()), out, None, None) >= pretrain.LEAST_POINTS
    packed = tmp_path / "data.jsonl.gz"
    pretrain.pack([out], packed)
    d = pretrain.load([packed])
    assert len(d.names) == len(small) and set(d.kinds) == {"rows"} and 0 <= d.y.min() < d.y.max() == 1
    first, second = (CostModel.train(d.x, d.y, d.group, 5) for _ in range(2))
    assert first.save() == second.save()
    assert (CostModel.load(first.save()).predict(d.x) == first.predict(d.x)).all()
