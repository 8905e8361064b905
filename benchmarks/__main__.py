"""python -m benchmarks [SUITE …]: Tilewright beside its peers on this machine."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import tilewright as tw
from tilewright.backends.profile import Profile
from tilewright.backends.target import Target
from tilewright.bench.compare import OURS, compare
from tilewright.bench.engines import ENGINES, PEERS, Job
from tilewright.bench.machine import describe
from tilewright.cli.arguments import parse_numbers, parse_peers
from tilewright.cli.console import note, table

from .markdown import results_md
from .models import load
from .page import results_page
from .results import Results, SuiteResult, rows
from .results import load as load_results
from .suites import Case, Suite, suites

RECORD = Path(__file__).parent / "RESULTS.md"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[SUITE]…", help="suites to run; default: all")] = None,
    models: Annotated[str, typer.Option(help="only models whose names contain one of these, separated by commas")] = "",
    peers: Annotated[str, typer.Option(help=f"of {', '.join(PEERS)}; all: every one; absent ones are listed")] = "all",
    threads: Annotated[str, typer.Option(help="numbers of threads for suites that do not say")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="bursts for each engine")] = 5,
    seconds: Annotated[float, typer.Option(min=0.0, help="length of a burst")] = 0.3,
    schedules: Annotated[Path | None, typer.Option(exists=True, help="a tuning log to take schedules from")] = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="folder for results.json and results.html")] = Path("benchmark-results"),
    again: Annotated[Path | None, typer.Option(exists=True, help="measure nothing: make the pages from this results.json")] = None,
    write_results: Annotated[bool, typer.Option("--write-results", help=f"write {RECORD.name} too")] = False,
    list_: Annotated[bool, typer.Option("--list", help="list suites and models, run nothing")] = False,
) -> None:
    known = suites(Target.host().cores)
    if unknown := [n for n in names or () if n not in known]:
        raise typer.BadParameter(f"there is no suite {unknown[0]!r}; there are {', '.join(known)}", param_hint="SUITE")
    chosen = [known[n] for n in names or known]
    if list_:
        table(("suite", "what", "models"), [(s.name, s.about, ", ".join(dict.fromkeys(c.model for c in s.cases))) for s in chosen])
        return
    engines, wanted = (OURS, *parse_peers(peers)), [m for m in models.split(",") if m]
    if again:
        results = load_results(again)
        output.mkdir(parents=True, exist_ok=True)
    else:
        for e in engines:
            if ENGINES[e].missing:
                note(f"{e}: absent ({', '.join(ENGINES[e].missing)} not installed)")
        machine, done, profiles = describe(engines), [], {}
        output.mkdir(parents=True, exist_ok=True)
        for s in chosen:
            done.append(_suite(s, engines, parse_numbers(threads, "--threads"), wanted, rounds, seconds, schedules))
            if s.profiled:
                profiles |= {(s.name, c.model): _profile(c, schedules) for c in s.cases if _chosen(c, wanted)}
            Results(machine, rounds, seconds, tuple(done), profiles).save(output / "results.json")  # an interrupted run keeps its suites
        results = Results(machine, rounds, seconds, tuple(done), profiles)
    (output / "results.html").write_text(results_page(results), encoding="utf-8")
    if write_results:
        RECORD.write_text(results_md(results), encoding="utf-8")
    note(f"{output / 'results.json'}, {output / 'results.html'}" + (f", {RECORD}" if write_results else ""))


def _chosen(c: Case, wanted: list[str]) -> bool:
    return not wanted or any(w in c.model for w in wanted)


def _suite(s: Suite, engines: tuple[str, ...], threads: tuple[int, ...], wanted: list[str], rounds: int, seconds: float,
           schedules: Path | None) -> SuiteResult:
    cold, found = s.value != "median", []
    for c in s.cases:
        if not _chosen(c, wanted):
            continue
        path, inputs = load(c.model, c.build)
        for n in (c.threads,) if c.threads else threads:
            job = Job(path, inputs, n, "f32", str(schedules) if schedules else None, cold)
            note(f"{s.name}: {c.model}, {n} thread{'s' * (n > 1)}")
            found.append(compare(job, (*engines, *c.engines), c.model, 1 if cold else rounds, 0.0 if cold else seconds,
                                 0.0 if cold else 0.2, point=c.point))
    result = SuiteResult(s.name, s.about, s.value, tuple(found))
    present = [e for e in dict.fromkeys((*engines, *(e for c in s.cases for e in c.engines))) if not ENGINES[e].missing]
    head, *body = rows(result, present)
    print(f"\n{s.name}: {s.about}")
    table(head, body, numbers=range(1, len(head)))
    for n in result.threads:
        if mean := result.mean(n):
            print(f"geometric mean of best peer / ours, {n} thread{'s' * (n > 1)}: {mean:.2f}")
    return result


def _profile(c: Case, schedules: Path | None) -> Profile:
    """The kernels of a model, for the roofline."""
    path, inputs = load(c.model, c.build)
    exe = tw.compile(str(path), threads=1, schedules=str(schedules) if schedules else None)
    return exe.profile([np.asarray(a) for a in inputs], seconds=0.5)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
