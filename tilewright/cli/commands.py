"""The commands. Each is thin: options to values, one call into the compiler, values to text."""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..version import __version__
from .console import duration, note, size, table

if TYPE_CHECKING:
    import numpy as np

    from ..backends.arguments import Spec
    from ..backends.executable import Executable
    from ..ir.graph import Graph

app = typer.Typer(name="tilewright", help="An ML compiler for CPUs: a model in, native code out.", no_args_is_help=True,
                  add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich" if sys.stdout.isatty() else None)


class Stage(StrEnum):
    """What `inspect` shows: the graph after its passes, the fused groups, their loops, LLVM IR, assembly."""

    graph = "graph"
    fused = "fused"
    loops = "loops"
    llvm = "llvm"
    asm = "asm"


class Precision(StrEnum):
    """The precision that contractions may use."""

    f32 = "f32"


EXPORTS = (".so", ".o", ".a", ".ll", ".s")

Model = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, metavar="MODEL",
                                       help="an ONNX file; or a graph snapshot (.twg); run and bench also take a compiled .twx")]
TargetName = Annotated[str, typer.Option("--target", help="native, x86-64-v3, aarch64+dotprod, …; see `tilewright targets`")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="threads at run time; default: the cores this process may use")]
ShapeTexts = Annotated[list[str] | None, typer.Option("--shape", metavar="NAME=DIMS", help="an input's shape, such as x=1,3,224,224")]
InputTexts = Annotated[list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="an input's value, a .npy file")]
Seed = Annotated[int | None, typer.Option("--random", metavar="SEED", min=0, help="random values for the inputs not given")]
Schedules = Annotated[Path | None, typer.Option("--schedules", exists=True, dir_okay=False, help="a tuning log to take schedules from")]
Strict = Annotated[bool, typer.Option("--strict", help="sums as the model writes them: no Winograd convolutions")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="neither read nor write the cache of compiled kernels")]


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and leave", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error (anywhere on the line)")] = False,
) -> None:
    if version:
        typer.echo(f"tilewright {__version__}")
        raise typer.Exit()


@app.command("compile")
def compile_(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="what to write, by its suffix: .twx, .so, .o, .a, .ll or .s")],
    target: TargetName = "native",
    threads: Threads = None,
    precision: Precision = Precision.f32,
    shape: ShapeTexts = None,
    schedules: Schedules = None,
    strict: Strict = False,
    no_cache: NoCache = False,
    header: Annotated[bool, typer.Option(help="write a C header beside .so, .o and .a")] = True,
) -> None:
    """Compiles a model into a file.

    A .twx is for `tilewright.load`; .so, .o and .a come with a C header; .ll and .s are text.
    """
    if output.suffix not in (".twx", *EXPORTS):
        raise typer.BadParameter(f"{output.name!r} does not end in {', '.join(('.twx', *EXPORTS))}", param_hint="--output")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"folder {str(output.parent)!r} does not exist", param_hint="--output")
    exe = _compile(model, target, threads, precision, shape, schedules, strict, no_cache)
    if output.suffix == ".twx":
        exe.save(output)
    else:
        exe.export(output, header=header and output.suffix in (".so", ".o", ".a"))
    note(f"{output}: {size(output.stat().st_size)} for {target}")


@app.command()
def run(
    model: Model,
    inputs: InputTexts = None,
    random: Seed = None,
    shape: ShapeTexts = None,
    output: Annotated[Path | None, typer.Option("--output", file_okay=False, help="folder for the outputs, one .npy each")] = None,
    target: TargetName = "native",
    threads: Threads = None,
    precision: Precision = Precision.f32,
    schedules: Schedules = None,
    strict: Strict = False,
    no_cache: NoCache = False,
) -> None:
    """Runs a model once and describes its outputs."""
    from .arguments import gather, parse_inputs, parse_shapes
    from .results import describe, flatten, save
    given, shapes = parse_inputs(inputs or ()), parse_shapes(shape or ())
    exe = _open(model, target, threads, precision, schedules, strict, no_cache)
    results = flatten(exe.run(gather(exe.inputs, given, shapes, random)))
    table(("output", "type", "min", "max", "mean", "NaN"), [describe(n, a) for n, a in results.items()], numbers=(2, 3, 4, 5))
    if output is not None:
        save(results, output)


@app.command()
def bench(
    model: Model,
    inputs: InputTexts = None,
    random: Seed = 0,
    shape: ShapeTexts = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="how long to measure each engine, after the warm-up")] = 2.0,
    peers: Annotated[str, typer.Option(help="engines to time beside, such as onnxruntime,openvino; all: every one")] = "none",
    target: TargetName = "native",
    threads: Annotated[str | None, typer.Option(help="numbers of threads, such as 1,2; default: the cores this process may use")] = None,
    precision: Precision = Precision.f32,
    schedules: Schedules = None,
    strict: Strict = False,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="write the comparison to this file, with the machine")] = None,
    no_cache: NoCache = False,
) -> None:
    """Times calls of a model, with given or random inputs; with --peers or several --threads, engines side by side.

    Side by side, each engine runs in a process of its own, outputs are compared before times count, and the engines take turns.
    """
    from .arguments import gather, parse_inputs, parse_numbers, parse_peers, parse_shapes
    from .timing import measure
    given, shapes = parse_inputs(inputs or ()), parse_shapes(shape or ())
    others, counts = parse_peers(peers), parse_numbers(threads, "--threads") if threads is not None else None
    if others or json or (counts and len(counts) > 1):
        _bench_peers(model, gather(_inputs_of(model, target), given, shapes, random), others, counts, precision, seconds, schedules, strict,
                     json)
        return
    exe = _open(model, target, counts[0] if counts else None, precision, schedules, strict, no_cache)
    values = gather(exe.inputs, given, shapes, random)
    t = measure(lambda: exe.run(values), seconds)
    table(("median", "10%", "90%", "min", "calls"),
          [(duration(t.median), duration(t.low), duration(t.high), duration(t.least), str(t.calls))], numbers=(0, 1, 2, 3, 4))


def _inputs_of(model: Path, target: str) -> Sequence[Spec]:
    """The inputs of an ONNX file, which is what other engines read."""
    from ..compiler.frontends import load as read
    if model.suffix in (".twx", ".twg"):
        raise typer.BadParameter(f"other engines do not read {model.suffix} files; give the ONNX file", param_hint="MODEL")
    if target != "native":
        raise typer.BadParameter("other engines run for this machine only: leave --target out beside --peers", param_hint="--target")
    return read(model).inputs


def _bench_peers(model: Path, values: Mapping[str, np.ndarray], peers: Sequence[str], threads: Sequence[int] | None, precision: Precision,
                 seconds: float, schedules: Path | None, strict: bool, json: Path | None) -> None:
    from ..backends.target import Target
    from .peers import save, show, side_by_side
    found = side_by_side(model, list(values.values()), peers, threads or (Target.host().cores,), precision.value, seconds, schedules,
                         strict)
    show(found)
    if json:
        save(found, json)
    if any(c.of("tilewright") is None for c in found):
        raise typer.Exit(1)


@app.command()
def inspect(
    model: Model,
    stage: Annotated[Stage, typer.Option(help="what to show")] = Stage.graph,
    target: TargetName = "native",
    group: Annotated[str | None, typer.Option(help="one fused group only, by number or name")] = None,
    shape: ShapeTexts = None,
    strict: Strict = False,
) -> None:
    """Prints a model on its way to machine code."""
    from ..compiler.inspect import inspect as text_of
    from .arguments import parse_shapes
    if group is not None and stage is Stage.graph:
        raise typer.BadParameter("the graph has no groups yet; choose a later --stage", param_hint="--group")
    typer.echo(text_of(_source(model), stage=stage.value, target=_target(target), shapes=parse_shapes(shape or ()), group=group,
                       strict=strict))


@app.command()
def check(model: Model) -> None:
    """Lists the nodes that cannot be compiled.

    The exit code is 1 if there is one.
    """
    from ..compiler.frontends import check as problems_of
    problems = problems_of(model)
    if not problems:
        typer.echo("everything in this model is supported")
        return
    table(("node", "op", "opset", "why", "what to do"), [(p.name, p.op, str(p.opset), p.why, p.workaround) for p in problems])
    raise typer.Exit(1)


@app.command()
def targets() -> None:
    """Lists the targets, and what this machine is."""
    from ..backends.target import Target, known_features, known_targets, runs_here
    known = [Target.parse(name) for name in known_targets()]
    rows = [(n, t.arch, t.cpu, f"{8 * t.vector_bytes} bits x {t.vector_registers}", "yes" if t.has_fma else "no",
             "yes" if runs_here(t) else "no") for n, t in zip(known_targets(), known, strict=True)]
    table(("target", "architecture", "cpu", "vectors", "fma", "runs here"), rows)
    host = Target.host()
    typer.echo(f"\nthis machine: {host.cores} cores, caches {size(host.l1d)}, {size(host.l2)}, {size(host.l3)}")
    for arch in ("x86_64", "aarch64"):
        typer.echo(f"features to add with + ({arch}): {' '.join(known_features(arch))}")


def _target(name: str) -> str:
    """`name`, if it is a target's; bad usage if not."""
    from ..backends.target import Target
    from ..errors import TargetError
    try:
        Target.parse(name)
    except TargetError as e:
        raise typer.BadParameter(str(e), param_hint="--target") from None
    return name


def _source(model: Path) -> Path | Graph:
    """What the compiler takes: the path of an ONNX file, or the graph in a snapshot that TILEWRIGHT_DUMP left."""
    if model.suffix == ".twx":
        raise typer.BadParameter(f"{model.name} is compiled already; give the ONNX file it was made from", param_hint="MODEL")
    if model.suffix != ".twg":
        return model
    from ..ir.text import load_graph
    return load_graph(model)


def _compile(model: Path, target: str, threads: int | None, precision: Precision, shape: list[str] | None,
             schedules: Path | None, strict: bool, no_cache: bool) -> Executable:
    from ..api import compile
    from .arguments import parse_shapes
    return compile(_source(model), inputs=parse_shapes(shape or ()) or None, target=_target(target), threads=threads,
                   precision=precision.value, schedules=schedules, cache=not no_cache, strict=strict)


def _open(model: Path, target: str, threads: int | None, precision: Precision, schedules: Path | None, strict: bool,
          no_cache: bool) -> Executable:
    """An executable for `model`: loaded from a .twx file, else compiled."""
    if model.suffix != ".twx":
        return _compile(model, target, threads, precision, None, schedules, strict, no_cache)
    from ..compiler.load import load
    if target != "native" or schedules is not None or strict:
        raise typer.BadParameter(f"{model.name} is compiled already; --target, --schedules and --strict come too late", param_hint="MODEL")
    return load(model)
