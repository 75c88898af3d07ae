"""ltcompile bench: dense and small, side by side, on every runtime that this machine has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from ltcompile.cli._network import EXAMPLE, MODEL, PLAN, WEIGHTS, named_pruned, own_network
from ltcompile.cli._timing_options import DATA_ROOT, DEVICE, RUNTIMES, SECONDS, TimingTable, batches, warn_if_busy

if TYPE_CHECKING:
    from ltcompile.core.records import FormatRow
    from ltcompile.core.task import Task
    from ltcompile.core.ticket import Ticket
    from ltcompile.pruned import Pruned

SUMMARY = "Time the small network next to the dense."
EPILOG = (
    "Examples:  ltcompile bench small.onnx --against dense  ·  ltcompile bench ticket.pt --runtime onnxruntime --batch 1 --batch 64  ·  "
    "ltcompile bench ticket.pt --competitors --batch 64  ·  ltcompile bench small.onnx --write-dense dense.onnx  ·  "
    "ltcompile bench --model my.net:build --weights trained.pth --plan plan.json --example 1x3x64x64  ·  "
    "ltcompile bench ticket.pt --formats all --max-drop 0.5"
)
BATCHES = (1, 8, 64)
NAME = 6  # characters of a network's name
FORMAT_LINE = "{:<12} {:<13} {:<9} {:>7} {:>8} {:>8} {:>7} {:<22} {:<20} {:>7} {:>7}"
IMAGES = 256  # outputs are compared on as many at most, and int8 takes its ranges from them


def bench(
    target: Optional[Path] = typer.Argument(
        None, help="A file of `ltcompile shrink` (.onnx), or a ticket.pt; without one, --model names the network."
    ),
    against: str = typer.Option("dense", help="What to time it next to: the dense network that it was cut from."),
    runtime: list[str] | None = typer.Option(None, help=f"{RUNTIMES}; by default those of the first five that work."),
    device: list[str] | None = DEVICE,
    batch: list[int] = batches(*BATCHES),
    data: str | None = typer.Option(None, help="Test images; the ticket's own data by default."),
    data_root: Path = DATA_ROOT,
    model: str | None = MODEL,
    weights: Optional[Path] = WEIGHTS,
    plan: Optional[Path] = PLAN,
    example: str | None = EXAMPLE,
    seconds: float = SECONDS,
    output: Path | None = typer.Option(None, "-o", "--output", help="Where to write; bench.json next to the target by default."),
    write_dense: Path | None = typer.Option(
        None, metavar="FILE", help="Write the dense network to this .onnx file too: what `ltcompile verify --dense` takes."
    ),
    competitors: bool = typer.Option(
        False, "--competitors", help="Time the engine against all runtimes that could run a ticket's networks; takes minutes."
    ),
    formats: str | None = typer.Option(
        None,
        metavar="all|LIST",
        help="One table of formats instead, all or such as .onnx,.xml,.mnn: size, metric and time of each in its own runtime, "
        "at one --batch, 1 by default.",
    ),
    precision: list[str] | None = typer.Option(None, help="With --formats: fp32, fp16, int8; fp32 by default."),
    threads: int | None = typer.Option(
        None, min=1, max=1024, help="With --formats: threads of one operation, where a runtime takes a number; 1 by default."
    ),
    max_drop: float | None = typer.Option(
        None, metavar="POINTS", help="With --formats: end with 1 where a format loses more points of accuracy, or units of the metric."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the rows as JSON."),
) -> None:
    """Measure the small network against the dense one: outputs checked first, then interleaved timings."""
    from ltcompile.benchmark.bench import bench as run
    from ltcompile.core.load import busy_share
    from ltcompile.core.run_folder import RunFolder
    from ltcompile.errors import InvalidSetting

    if against != "dense":
        raise InvalidSetting(f"--against takes dense, not {against!r}")
    file = target if target is not None and target.suffix == ".onnx" and example is not None else None  # of one's own network
    own = own_network(None if file else target, model, weights, plan, example)
    warn_if_busy(busy_share())
    if formats is None and (precision or threads is not None or max_drop is not None):
        raise InvalidSetting("--precision, --threads and --max-drop belong to --formats; add --formats all")
    if formats is not None:
        names = None if formats == "all" else [name.strip() for name in formats.split(",")]
        if runtime or device or write_dense or competitors or file:
            raise InvalidSetting(
                "--formats times each format of a ticket.pt or a --model in its own runtime on the CPU; give it without "
                "--runtime, --device, --write-dense and --competitors"
            )
        if len(batch) > 1 and tuple(batch) != BATCHES:
            raise InvalidSetting(f"--formats times one batch size, not {', '.join(map(str, batch))}; give one --batch")
        batch = batch if len(batch) == 1 else [1]
        where = output or RunFolder(target.parent if target else ".").formats
        if target is not None and target.suffix == ".onnx":
            raise InvalidSetting(f"--formats takes a ticket.pt, or a network that --model names, not {target}")
        pruned = named_pruned(target, model, weights, plan, example)
        _formats(pruned, names, precision or ["fp32"], threads or 1, batch[0], data, data_root, max_drop, seconds, where, as_json)
        return
    if competitors:
        if own or target is None or runtime or write_dense or len(device or []) > 1 or target.suffix == ".onnx":
            raise InvalidSetting("--competitors takes a ticket.pt and one --device, and no --runtime or --write-dense: all run")
        _competitors(
            target,
            device[0] if device else None,
            batch,
            data,
            data_root,
            model,
            seconds,
            output or target.parent / "competitors.json",
            as_json,
        )
        return
    table = TimingTable(NAME, *([] if own else ["accuracy"]))
    written = output or RunFolder(target.parent if target else ".").bench
    result = run(
        own or str(target),
        runtimes=runtime or None,
        devices=device or None,
        batches=batch,
        data=data,
        data_root=data_root,
        model=None if own else model,
        seconds_per_row=seconds,
        output=written,
        write_dense=write_dense,
        file=file,
        on_row=None if as_json else lambda row: table.add(row, "" if row.accuracy is None else f"{row.accuracy:8.2%}"),
    )
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    for reason in dict.fromkeys(result.skipped.values()):
        skipped = ", ".join(name for name, why in result.skipped.items() if why == reason)
        typer.echo(f"skipped {skipped}: {reason}")
    files = " and ".join(str(path) for path in (written, write_dense) if path)
    typer.echo(f"wrote {files}; next: ltcompile report {written.parent}")


def _formats(
    pruned: Pruned,
    names: list[str] | None,
    precisions: list[str],
    threads: int,
    batch: int,
    data: str | None,
    data_root: Path,
    max_drop: float | None,
    seconds: float,
    output: Path,
    as_json: bool,
) -> None:
    """The table of formats; ends with 1 where a format loses more than `max_drop`."""
    from ltcompile.benchmark.formats import bench_formats
    from ltcompile.errors import InvalidSetting
    from ltcompile.paths import check_writable

    if pruned.ticket is None and data is not None:
        raise InvalidSetting(f"--data {data}: --formats measures the metric of a ticket alone; leave --data out")
    task = None if pruned.ticket is None else _task(pruned, pruned.ticket, data, data_root, max_drop is not None)
    head = FORMAT_LINE.format(
        "format", "runtime", "precision", "threads", "size KB", "metric", "error", "ms (95 %)", "speedup (95 %)", "peak MB", "start s"
    )
    rows: list[FormatRow] = []

    def on_row(row: FormatRow) -> None:
        rows.append(row)
        if not as_json:
            typer.echo(f"{head}\n" * (len(rows) == 1), nl=False)
            _print_format(row)

    result = bench_formats(
        pruned,
        names,
        precisions=precisions,
        threads=threads,
        batch=batch,
        task=task,
        max_drop=max_drop,
        seconds=seconds,
        output=check_writable(output),
        on_row=on_row,
    )
    if as_json:
        typer.echo(output.read_text())
    else:
        reference = (
            ""
            if result.reference is None
            else f"; {result.metric} of the fp32 network in PyTorch, on {result.test_images} test images: {result.reference:.4g}"
        )
        typer.echo(f"wrote {output}{reference}")
    if result.dropped:
        typer.secho(f"lose more than {max_drop:g}: {', '.join(result.dropped)}", fg="red", err=True)
        raise typer.Exit(1)


def _task(pruned: Pruned, ticket: Ticket, data: str | None, data_root: Path, required: bool) -> Task | None:
    """What a ticket is for, on `data` or its own; None, and a line on stderr, where its own is not here and not `required`."""
    from ltcompile import tasks
    from ltcompile.cli.shrink import calibration
    from ltcompile.data import Dataset
    from ltcompile.errors import InvalidSetting, LtcompileError
    from ltcompile.graph.examples import TENSORS

    if data is not None and data.endswith(TENSORS):
        raise InvalidSetting(
            f"--data {data}: --formats measures the metric on labelled data, which a file of inputs is not; name a data set"
        )
    try:
        loaded = calibration(pruned, data or ticket.data["name"], data_root)
        return tasks.load("classification").TASK(loaded) if isinstance(loaded, Dataset) else loaded  # type: ignore[no-any-return, return-value]
    except LtcompileError as error:
        if data is not None or required:
            raise
        typer.secho(f"no metric is measured: {error}; --data NAME takes another data set", fg="yellow", err=True)
        return None


def _print_format(row: FormatRow) -> None:
    def text(form: str, *values: float | None) -> str:
        return "" if None in values else form.format(*values)

    scaled = (None if row.bytes is None else row.bytes / 1e3, None if row.peak_bytes is None else row.peak_bytes / 1e6)
    cells = (
        text("{:.0f}", scaled[0]),
        text("{:.4g}", row.metric),
        text("{:.0e}", row.max_error),
        text("{:.3f} ({:.3f}-{:.3f})", row.ms, row.ms_low, row.ms_high),
        text("{:.2f}x ({:.2f}-{:.2f})", row.speedup, row.speedup_low, row.speedup_high),
        text("{:.1f}", scaled[1]),
        text("{:.3f}", row.start_s),
    )
    line = FORMAT_LINE.format(row.format, row.runtime, row.precision, row.threads or "", *cells).rstrip()
    typer.echo(f"{line}  {row.reason}" if row.reason else line)


def _competitors(
    ticket: Path,
    device: str | None,
    batches: list[int],
    data: str | None,
    data_root: Path,
    model: str | None,
    seconds: float,
    output: Path,
    as_json: bool,
) -> None:
    """Both networks of a ticket, on the GPU where there is one."""
    from ltcompile.benchmark.bench import open_pair
    from ltcompile.benchmark.competitors import Case, CompetitorsResult, Network, case_table, run, write
    from ltcompile.paths import check_writable
    from ltcompile.training.device import pick_device

    for path in (output, output.with_suffix(".md"), output.with_name("layers.html")):
        check_writable(path)
    pair = open_pair(ticket, max(IMAGES, *batches), data=data, data_root=data_root, model=model)

    def on_case(result: CompetitorsResult, last: Case) -> None:
        write(result, output)
        if not as_json:
            typer.echo(f"\n{last.subject}, batch {last.batch}\n{case_table(result, last.subject, last.batch)}")

    result = run(
        [Network(name, network, pair.images) for name, network in pair.networks.items()],
        [Case(name, batch) for batch in batches for name in ("small", "dense")],
        device=pick_device(device).type,
        seconds=seconds,
        images=pair.origin,
        on_progress=lambda text: typer.echo(text, err=True),
        on_case=on_case,
    )
    typer.echo(json.dumps(result.to_json()) if as_json else f"wrote {output}, {output.stem}.md and layers.html")
