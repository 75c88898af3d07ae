"""Bars for a search: one over all its epochs with the time left, and a line for every finished training."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from ltcompile.cli._terminal import progress
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.core.task import ACCURACY, Metric
from ltcompile.errors import Unavailable
from ltcompile.paths import writing
from ltcompile.search import SearchConfig
from ltcompile.training import Epoch

HEADER = f"{'seed':>4}  {'arm':<12} {'level':>5}  {'filters':>7} {'params':>11} {'MACs':>13}  {'val':>8}  {'seconds':>7}"
WIDE = 100  # characters


class Screen:
    """Where bars are drawn, one below the other, and a table of finished trainings above them. `searches`: with a column of their names."""

    def __init__(self, quiet: bool, searches: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = progress(self.console, "epochs", disable=quiet)
        self.shown, self.searches = False, searches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.shown:
            self.bar.stop()

    def show(self) -> None:
        """Print the table's head and the bars once an arm begins; what is wrong before that is an error alone."""
        if not self.shown:
            self.shown = True
            self.bar.start()
            self.console.print(HEADER + ("  search" if self.searches else ""), style="bold", highlight=False)


class Bars:
    """A search's listener. The bar counts epochs; later rounds have shorter ones, so the time left is an upper estimate."""

    def __init__(self, config: SearchConfig, recipe: Recipe, screen: Screen, metric: Metric = ACCURACY, name: str = "") -> None:
        self.metric, self.screen, self.console, self.bar = metric, screen, screen.console, screen.bar
        self.name, self.of = name, f"{name}: " if name else ""
        ticket_epochs = len(config.shares) * (recipe.epochs - config.rewind_epoch)
        self.task = self.bar.add_task(f"{self.of}dense", total=config.seeds * (recipe.epochs + ticket_epochs))
        self.writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writer is not None:
            self.writer.close()

    def log_to_tensorboard(self, folder: Path) -> None:
        """Also write scalars to `folder`/tensorboard. Raises Unavailable where TensorBoard is not installed, InvalidFile as it says."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise Unavailable("TensorBoard is not installed; run `pip install 'ltcompile[tensorboard]'`") from error
        with writing(folder / "tensorboard"):
            self.writer = SummaryWriter(str(folder / "tensorboard"))

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None:
        self.screen.show()
        if arm not in ("dense", "ticket"):  # controls are known only once the level is chosen
            self.bar.update(self.task, total=(self.bar.tasks[self.task].total or 0) + epochs)
        self.bar.update(self.task, description=f"{self.of}seed {seed} {arm} {level}", advance=done)

    def epoch(self, seed: int, arm: str, level: int, row: Epoch) -> None:
        speed = f"  {row.images_per_second:.0f} images/s" if self.console.width >= WIDE else ""
        self.bar.update(
            self.task, description=f"{self.of}seed {seed} {arm} {level}  val {self.metric.format(row.val_score)}{speed}", advance=1
        )
        if self.writer is not None:
            for name in ("train_loss", "val_loss", "train_accuracy", "val_score", "lr"):
                self.writer.add_scalar(f"seed{seed}/{arm}-{level}/{name}", getattr(row, name), row.epoch)

    def finished(self, row: Trained, from_file: bool) -> None:
        self.screen.show()
        if from_file:
            self.bar.update(self.task, advance=row.epochs if row.arm in ("dense", "ticket") else 0)
        self.console.print(
            f"{row.seed:>4}  {row.arm:<12} {row.level:>5}  {row.filters:>7,} {row.params:>11,} {row.macs:>13,}  {self.metric.format(row.val_score):>8}  "
            f"{row.seconds:>7.1f}" + (f"  {self.name}" if self.name else "") + ("  (from its file)" if from_file else ""),
            highlight=False,
        )
