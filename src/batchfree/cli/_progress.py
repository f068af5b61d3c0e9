"""What a person sees while a study runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from batchfree.study import Progress

__all__ = ["ProgressBar"]


class ProgressBar:
    """Cells done and time left: a bar in a terminal, a line per finished cell elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        self.console = Console(stderr=True)
        self.shown = -1
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeLeft(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("cells", total=None)

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, progress: Progress) -> None:
        """Draws how far the study is."""
        described = f"cells {progress.cells_done}/{progress.cells}"
        self.bar.update(self.task, description=described, completed=progress.epochs_done, total=progress.epochs)
        if not self.console.is_terminal and progress.cells_done != self.shown:
            self.shown = progress.cells_done
            print(f"{described}, epochs {progress.epochs_done}/{progress.epochs}", file=sys.stderr, flush=True)
