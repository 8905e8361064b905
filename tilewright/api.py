"""The public functions that join the compiler and the tuner, which do not know each other."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .compiler.compile import Inputs
from .compiler.compile import compile as compile_with

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from .autotune.tuner import Tuned, Watcher
    from .backends.executable import Executable
    from .backends.target import Target
    from .compiler.schedule.source import ScheduleSource

Path_ = str | os.PathLike[str]


def compile(model: object, *, inputs: Inputs | None = None, target: str | Target = "native", threads: int | None = None,
            precision: str = "f32", schedules: Path_ | ScheduleSource | None = None, cache: bool = True,
            strict: bool = False, method: str = "", iterations: tuple[int, int] | None = None) -> Executable:
    """Compiles a model to native code.

    model:     path, bytes or ModelProto of ONNX; a torch.nn.Module (then `inputs` are example tensors); a model on tables of
               LightGBM, XGBoost or scikit-learn (then `inputs` is a sample X, whose dtype counts, and calls take any number
               of rows).
    inputs:    fixes symbolic shapes now instead of at the first call: example arrays in order, or name -> shape or array.
    target:    "native", or another processor (`Target.parse`) for export.
    threads:   how many threads may take part in a call, the caller's included (default: all cores available).
    precision: "f32": as the model says.
    schedules: a tuning log (`tune`), or another source of schedules. What the log does not have, or what does not fit, is
               scheduled by the heuristic; `Executable.explain` says what became of each record.
    cache:     keep compiled objects on disk.
    strict:    only sums as the model writes them: no Winograd convolutions, which are about twice as fast and have up to ten
               times the rounding error, and subnormal weights count (docs/accuracy.md).
    method:    of a model on tables: "predict" (default), "predict_proba", "decision_function", "apply", …
    iterations: of a booster: the rounds [begin, end) to use (default: what its own predict uses).

    Raises ModelError, UnsupportedError, InputError, TargetError.
    """
    return compile_with(model, inputs=inputs, target=target, threads=threads, precision=precision, schedules=_source(schedules),
                        cache=cache, strict=strict, method=method, iterations=iterations)


def _source(schedules: Path_ | ScheduleSource | None) -> ScheduleSource | None:
    if isinstance(schedules, (str, os.PathLike)):
        from .autotune.replay import LogSource
        return LogSource.read(Path(schedules))
    return schedules


def tune(model: object, *, inputs: Inputs | None = None, target: str | Target = "native", threads: int | None = None,
         precision: str = "f32", strict: bool = False, trials: int | None = None, seconds: float | None = None,
         log: Path_ = "tuning.jsonl", pool: Executor | object | None = None, seed: int = 0, cold: bool = False,
         watch: Watcher | None = None, only: Sequence[str] = (), options: Mapping[str, float] | None = None) -> Tuned:
    """Searches schedules for a model on this machine and keeps what was measured in a log, for `compile(schedules=log)`.

    model, inputs, target, threads, precision, strict: as for `compile`; shapes must be concrete.
    trials:  schedules measured in all, those that the log has for this model included (default: 32 for each task).
    seconds: stop the search after so long (wall clock).
    log:     JSON lines, appended to; tuning goes on from what it holds.
    pool:    a `distributed.Client`, or any executor whose workers can import tilewright, to measure elsewhere.
    seed:    of the search and of the measured inputs.
    cold:    measure with caches emptied before each run.
    watch:   is told what happens (default: a live view on a terminal, lines elsewhere).
    only:    labels of the tasks to search, such as "conv" (default: all).
    options: `Limits` of one measurement, by name.

    Returns the report; its `executable` is the tuned model, never slower than the untuned one by the last measurement.
    Raises as `compile`, and InputError where the model's shapes are not concrete or the target is not this machine.
    """
    from .autotune.tuner import tune_model
    return tune_model(model, inputs=inputs, target=target, threads=threads, precision=precision, strict=strict, trials=trials,
                      seconds=seconds, log=Path(log), pool=pool, seed=seed, cold=cold, watch=watch, only=only, options=options or {})
