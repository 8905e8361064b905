"""Measuring on other workers: a dask cluster that loses one, and any executor."""
from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import pytest
from distributed import Client, LocalCluster

import tilewright as tw
from tests.autotune.programs import mlp, task
from tests.autotune.test_tuner import Quiet, trials
from tilewright.autotune.log import Hardware
from tilewright.autotune.measure import Limits
from tilewright.autotune.remote import Remote
from tilewright.autotune.schedules import space_of
from tilewright.backends.target import Target

LIMITS = Limits(budget=0.01)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers, one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster, Client(cluster) as c:
        yield c


def test_a_worker_is_killed_in_the_middle(client: Client) -> None:
    t = task()
    space, rng = space_of(t), random.Random(0)
    with Remote(client, limits=LIMITS) as pool:
        pool.check(Target.host())
        assert pool.width >= 4
        futures = [pool.submit(t, [])] + [pool.submit(t, space.to_json(space.sample(rng))) for _ in range(15)]  # type: ignore[arg-type]
        assert futures[0].result(120).ok
        pids = cast("dict[str, int]", client.run(os.getpid))
        assert len(pids) == 2
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        found = [f.result(180) for f in futures]
    assert all(r.ok for r in found), found
    assert {Hardware.of(r.target).kind for r in found if r.target} == {Hardware.of(Target.host()).kind}


def test_tuning_on_a_cluster(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "l.jsonl"
    tw.tune(mlp(tmp_path / "m.onnx"), log=log, trials=9, threads=1, pool=client, watch=Quiet(), options={"budget": 0.01})
    found = trials(log)
    assert len(found) == 9
    assert all(r.ok and r.target == Hardware.of(Target.host()) for r in found)


def test_any_executor_serves() -> None:
    t = task()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, Remote(pool, limits=LIMITS) as remote:
        assert remote.submit(t, []).result(120).ok
        bad = remote.submit(t, [["no such sketch", {}]]).result(120)
        assert bad.status == "compile_error"


class Lost(Executor):
    """Every worker is gone."""

    def submit(self, fn: object, /, *args: object, **kwargs: object) -> Future:  # type: ignore[override]
        f: Future = Future()
        f.set_exception(OSError("gone"))
        return f


def test_a_lost_worker_is_a_crash_of_the_trial() -> None:
    found = Remote(Lost()).submit(task(), []).result(10)
    assert (found.status, "gone" in (found.error or "")) == ("crash", True)


def test_what_is_no_pool_is_refused() -> None:
    with pytest.raises(tw.InputError, match="executor or a dask client"):
        Remote(3)
