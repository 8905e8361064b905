"""`tilewright tune`, `tilewright replay`, `tilewright log …`."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ModelError
from .commands import Model, Precision, ShapeTexts, Strict, TargetName, Threads, _source, _target, app
from .console import duration, note, table

if TYPE_CHECKING:
    from ..autotune.log import Record

Log = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, metavar="LOG", help="a tuning log")]
logs = typer.Typer(name="log", help="Looks into tuning logs, joins and shortens them.", no_args_is_help=True)
app.add_typer(logs)


@app.command()
def tune(
    model: Model,
    log: Annotated[Path, typer.Option(dir_okay=False, help="appended to; tuning goes on from what it holds")] = Path("tuning.jsonl"),
    trials: Annotated[int | None, typer.Option(min=1, help="schedules in all, those in the log included; default: 32 a task")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="stop the search after so long")] = None,
    shape: ShapeTexts = None,
    target: TargetName = "native",
    threads: Threads = None,
    precision: Precision = Precision.f32,
    strict: Strict = False,
    seed: Annotated[int, typer.Option(help="of the search and of the measured inputs")] = 0,
    cold: Annotated[bool, typer.Option("--cold", help="measure with caches emptied before each run")] = False,
    only: Annotated[list[str] | None, typer.Option(help="search only tasks whose label holds this word, such as conv")] = None,
    report: Annotated[Path | None, typer.Option(dir_okay=False, help="write a page with the curves and the gains of each kernel")] = None,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="measure on the workers of this dask scheduler")] = None,
) -> None:
    """Searches schedules for a model and keeps what was measured in a log.

    Use it with --schedules LOG, of any other command. What is not faster in the whole model is not used.
    """
    from ..api import tune as tune_
    from .arguments import parse_shapes
    for path in (log, *([report] if report else [])):
        if not path.resolve().parent.is_dir():
            raise typer.BadParameter(f"folder {str(path.parent)!r} does not exist", param_hint="--log" if path is log else "--report")
    tuned = tune_(_source(model), inputs=parse_shapes(shape or ()) or None, target=_target(target), threads=threads,
                  precision=precision.value, strict=strict, trials=trials, seconds=seconds, log=log, seed=seed, cold=cold,
                  only=only or (), pool=_dask(dask) if dask else None)
    typer.echo(str(tuned))
    if report:
        tuned.to_html(report)
        note(f"{report}: the report")


def _dask(address: str) -> object:
    try:
        from distributed import Client
    except ImportError:
        raise typer.BadParameter("dask is not installed; pip install 'tilewright[dask]'", param_hint="--dask") from None
    try:
        return Client(address, timeout=10)
    except OSError as e:
        raise typer.BadParameter(f"there is no dask scheduler at {address}: {e}", param_hint="--dask") from None


@app.command()
def replay(
    log: Log,
    model: Annotated[Path, typer.Option(exists=True, dir_okay=False, readable=True, help="the model whose tasks are looked up")],
    shape: ShapeTexts = None,
    target: TargetName = "native",
    threads: Annotated[int | None, typer.Option(min=1, help="default: as most of the log's records of this model")] = None,
    precision: Precision = Precision.f32,
    strict: Annotated[bool, typer.Option("--strict", help="fail unless every task has a record that applies as it is")] = False,
    strict_sums: Annotated[bool, typer.Option("--strict-sums", help="the model as compiled with --strict")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="time the applied schedules again and show the drift")] = False,
) -> None:
    """Says for each task of a model what becomes of its records: applied, adapted, rejected or missing, and why."""
    from ..autotune.replay import replay as replay_
    from .arguments import parse_shapes
    rows = replay_(_source(model), log, inputs=parse_shapes(shape or ()) or None, target=_target(target), threads=threads,
                   precision=precision.value, strict=strict_sums, measure=measure)
    head = ["task", "label", "uses", "status", "recorded", *(["now", "drift"] if measure else []), "why"]
    body = [[r.task.hash[:8], r.task.label, str(r.task.uses), r.status, duration(r.recorded) if r.recorded else "",
             *([duration(r.measured) if r.measured else "", f"{r.drift:+.0%}" if r.drift is not None else ""] if measure else []), r.reason]
            for r in rows]
    table(head, body, numbers=(2, 4, 5, 6) if measure else (2, 4))
    counts = {s: sum(r.status == s for r in rows) for s in ("applied", "adapted", "rejected", "missing")}
    typer.echo(", ".join(f"{n} {s}" for s, n in counts.items()))
    if strict and counts["applied"] < len(rows):
        raise typer.Exit(1)


# -- log -----------------------------------------------------------------------------------------------------------------
def _records(path: Path) -> list[Record]:
    from ..autotune.log import TuningLog
    return TuningLog(path).records()


@logs.command()
def show(log: Log, task: Annotated[str, typer.Option(help="only tasks whose hash starts like this")] = "") -> None:
    """Lists the tasks of a log: trials, failures, the best time and the compiler's own."""
    from ..autotune.log import best_of, groups
    rows = []
    for (name, kind, threads), found in groups(r for r in _records(log) if r.task.startswith(task)).items():
        good, own = [r for r in found if r.ok], min((r.ns for r in found if r.ok and not r.schedule), default=0.0)
        best, gain = best_of(good) if good else (None, 0.0)
        what = "whole model" if found[0].of_model else _head(found[0])
        rows.append((name[:8], kind[1], str(threads), str(len(found)), str(len(found) - len(good)), duration(own / 1e9) if own else "",
                     duration(best.ns / 1e9) if best else "", f"x{gain:.2f}" if gain else "", what))
    table(("task", "cpu", "threads", "trials", "failed", "own", "best", "gain", "what"), rows, numbers=(2, 3, 4, 5, 6, 7))


def _head(r: Record) -> str:
    """The program's inputs and outputs, or a site's label, shortened."""
    from ..autotune.site import parsed_site
    from ..compiler.schedule.source import SITE_HEAD
    if r.workload.startswith(SITE_HEAD):
        try:
            return SITE_HEAD + parsed_site(r.workload)[1]
        except ModelError:
            pass  # of another version: its first line will do
    line = r.workload.splitlines()[0].removeprefix("program @p").rstrip(" {")
    return line if len(line) <= 90 else line[:87] + "…"


@logs.command()
def best(log: Log) -> None:
    """Prints the best record of each task, processor and number of threads, one JSON object a line."""
    from ..autotune.log import best_of, groups
    for found in groups(_records(log)).values():
        good = [r for r in found if r.ok]
        if good:
            typer.echo((found[-1] if found[0].of_model else best_of(good)[0]).line())


@logs.command()
def merge(inputs: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, metavar="LOG...", help="logs to join")],
          output: Annotated[Path, typer.Option("-o", "--output", dir_okay=False, help="what to write")]) -> None:
    """Joins logs: every record once, in the order of time."""
    from ..autotune.log import TuningLog, merged
    if not output.resolve().parent.is_dir():
        raise typer.BadParameter(f"folder {str(output.parent)!r} does not exist", param_hint="--output")
    records = merged([_records(p) for p in inputs])
    TuningLog(output).replace(records)
    note(f"{output}: {len(records)} records")


@logs.command()
def prune(log: Log, keep: Annotated[int, typer.Option(min=1, help="how many of the best records of a task stay")] = 1,
          output: Annotated[Path | None, typer.Option("-o", "--output", dir_okay=False, help="default: the log itself")] = None) -> None:
    """Keeps what a replay needs: of each task the compiler's own record and the best ones, and the last decisions."""
    from ..autotune.log import TuningLog, pruned
    before = _records(log)
    after = pruned(before, keep)
    TuningLog(output or log).replace(after)
    note(f"{output or log}: {len(after)} of {len(before)} records stay")

