"""The options of timings, and how their rows are printed, which `bench` and `sweep` share; `verify` warns as they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.cli._options import MOST_IMAGES

if TYPE_CHECKING:
    from ltcompile.core.records import Measurement

RUNTIMES = "eager, compile, onnxruntime, tensorrt, openvino, mnn, ncnn, tract, litert or executorch"
DEVICE: Any = typer.Option(None, help="cpu, cuda; all that work by default.")
SECONDS: Any = typer.Option(2.0, min=0, max=3600, help="Time to spend on each row.")
DATA_ROOT: Any = typer.Option(Path("data"), help="Folder with the data in torchvision's layout.")


def batches(*usual: int) -> Any:
    """The option of batch sizes, `usual` ones by default."""
    return typer.Option([*usual], min=1, max=MOST_IMAGES, help="Batch sizes; repeat for several.")


def warn_if_busy(share: float | None) -> None:
    """Say on stderr that other work took so much of the machine, if it did."""
    from ltcompile.core.load import is_busy

    if is_busy(share):
        typer.secho(f"other work took {share:.0%} of this machine: intervals are wide; do not quote these times", fg="yellow", err=True)


class TimingTable:
    """Rows as lines on stdout; the heads of the columns stand before the first row, so that none stand above an error."""

    def __init__(self, width: int, *more: str) -> None:
        """`width` characters are for a network's name, and `more` are the heads behind those that all tables have."""
        self.width, self.more, self.begun = width, more, False

    def add(self, row: Measurement, *more: str) -> None:
        """Print a row; `more` belongs to the heads of that name."""
        if not self.begun:
            self.begun = True
            columns = f"{'runtime':<12} {'device':<5} {'batch':>5}  {'network':<{self.width}} {'p20 ms':>9} {'p50 ms':>9} {'p80 ms':>9}"
            typer.secho("  ".join((columns, f"{'speedup (95 %)':<22}", *self.more)).rstrip(), bold=True)
        times = f"{row.ms_p20:>9.3f} {row.ms_p50:>9.3f} {row.ms_p80:>9.3f}"
        speedup = "" if row.speedup is None else f"{row.speedup:6.2f}x ({row.speedup_low:.2f}-{row.speedup_high:.2f})"
        line = f"{row.runtime:<12} {row.device:<5} {row.batch:>5}  {row.subject:<{self.width}} {times}"
        typer.echo("  ".join((line, f"{speedup:<22}", *more)).rstrip())
