"""The commands. Each imports what it needs when it runs, so that `batchfree report` starts without torch."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from batchfree import BatchfreeError, __version__
from batchfree.records import CellConfig, CellResult

if TYPE_CHECKING:
    from batchfree.study import Progress

__all__ = ["app", "run"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # a crash's last line is its reason, whole
    help="Vision networks that do not depend on the batch: studies and their reports.",
)
study_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train one network with several norms and compare."
)
app.add_typer(study_app, name="study")

#: Exit statuses: 0 all cells finished, 1 some failed, 2 the input is refused, 128 + n ended by signal n.
FAILED, REFUSED, SIGNALLED = 1, 2, 128

#: More than NFS takes to give up the lock of a node that is lost (90 s).
LOCK_SECONDS = 120.0

STOPPING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run() -> None:
    """The entry point: what batchfree refuses on purpose is one message and exit status 2, not a traceback."""
    try:
        app()
    except BatchfreeError as error:
        Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(REFUSED)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"batchfree {__version__}")
        raise typer.Exit


@study_app.callback()
def _study() -> None:
    """Keeps `norm-batch` a name of its own while it is the only study."""


@study_app.command("norm-batch")
def norm_batch(
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, or a folder of class folders.")] = "digits",
    model: Annotated[str, typer.Option(help="resnet8 or resnet20.")] = "resnet8",
    norms: Annotated[str, typer.Option(help="Which arms, by commas.")] = "bn,gn,gn+ws,ln,in",
    norm_batch: Annotated[
        str, typer.Option(help="How many images share Batch Norm's statistics, by commas.")
    ] = "32,8,4,2,1",
    sgd_batch: Annotated[int | None, typer.Option(help="How many images make one step. [default: 32]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: 0.1 * SGD batch / 32]")] = None,
    protocol: Annotated[
        str, typer.Option(help="fixed-sgd, or paper: SGD batch 8 N and lr 0.1 N / 32 at norm batch N.")
    ] = "fixed-sgd",
    groups: Annotated[str, typer.Option(help="Groups of each norm of gn and gn+ws: a number, or auto.")] = "auto",
    seeds: Annotated[int, typer.Option(help="Runs per arm, with seeds 0, 1, ...")] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs per run.")] = 15,
    train_images: Annotated[int | None, typer.Option(help="How many training images. [default: all]")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of a folder's images, in pixels. [default: 32]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where fashion-mnist's four files lie. [default: Debian's place]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for cells and report; run again, it does what is missing.")] = Path(
        "runs/norm-batch"
    ),
    jobs: Annotated[int | None, typer.Option(help="Runs at the same time. [default: as many as cores]")] = None,
    threads: Annotated[int, typer.Option(help="Threads per run; part of what is compared, since they move bits.")] = 1,
) -> None:
    """Error against the number of images that share Batch Norm's statistics."""
    from batchfree.study import NormBatchSettings, run_study

    settings = NormBatchSettings(
        data=data,
        data_dir=None if data_dir is None else str(data_dir.resolve()),
        image_size=image_size,
        train_images=train_images,
        model=model,
        norms=_words(norms),
        norm_batch=tuple(_number("--norm-batch", word) for word in _words(norm_batch)),
        sgd_batch=sgd_batch,
        learning_rate=lr,
        groups="auto" if groups == "auto" else _number("--groups", groups),
        protocol=protocol,
        seeds=seeds,
        epochs=epochs,
        threads=threads,
    )
    command = shlex.join(["batchfree", *sys.argv[1:]])
    received = _raise_on_signals()
    try:
        with _ProgressBar() as bar:
            results = run_study(settings, out, jobs=jobs, command=command, on_progress=bar.show)
    except KeyboardInterrupt:
        print(f"\nStopped. Finished cells are kept in {out}; the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(SIGNALLED + received[0]) from None
    report(out)
    for result in results:
        if result.status != "done":
            again = ". The same command tries it again" if result.status == "failed" else ""
            print(f"{result.cell_id} {result.status}: {result.reason}{again}.", file=sys.stderr)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(FAILED)


@app.command()
def report(out: Annotated[Path, typer.Argument(help="The --out folder of a study.")]) -> None:
    """Build the report of a study again, from its files alone; torch is not needed."""
    from batchfree.report import build_report

    print(f"Report: {build_report(out)}")


@app.command()
def cell(
    assignments: Annotated[list[str], typer.Argument(help="The configuration, as key=value words.")],
    out: Annotated[Path, typer.Option(help="Folder of this one run.")],
) -> None:
    """One training run of a study, alone: the command that the report gives for each cell."""
    from batchfree.study import PARENT_VARIABLE, is_parent_gone, run_cell

    received: list[int] = []
    for number in STOPPING_SIGNALS:
        signal.signal(number, lambda given, _frame: received.append(given))

    def should_stop() -> bool:
        if is_parent_gone():
            received.append(signal.SIGHUP)  # the study is gone, by whatever end
        return bool(received)

    # Started by a study, it may follow on a process of its own kind that is still about to stop.
    lock_seconds = LOCK_SECONDS if PARENT_VARIABLE in os.environ else 0.0
    result = run_cell(_cell_config(assignments), out, should_stop, lock_seconds=lock_seconds)
    is_first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
    if result is None:
        if is_first:
            print("Stopped; a checkpoint is written. The same command goes on from there.", flush=True)
        # another worker may have been told, and not this one
        raise typer.Exit(SIGNALLED + (received[0] if received else signal.SIGTERM))
    if is_first:
        print(_outcome(result))


@app.command()
def info() -> None:
    """What is installed, what the compiled core uses on this machine, and why not the rest."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    from batchfree import _core

    print(f"batchfree {__version__}, Python {sys.version.split()[0]}")
    print(f"compiled core: {_core.compiler()}; this machine runs {', '.join(_core.instruction_sets())}")
    for package, extra in (("torch", "torch"), ("keras", "keras"), ("scikit-learn", "study")):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} is not installed: pip install 'batchfree[{extra}]'")
    if find_spec("torch") is not None:
        from batchfree.torch import kernel_info

        print(kernel_info())


class _ProgressBar:
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

    def __enter__(self) -> _ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, progress: Progress) -> None:
        described = f"cells {progress.cells_done}/{progress.cells}"
        self.bar.update(self.task, description=described, completed=progress.epochs_done, total=progress.epochs)
        if not self.console.is_terminal and progress.cells_done != self.shown:
            self.shown = progress.cells_done
            print(f"{described}, epochs {progress.epochs_done}/{progress.epochs}", file=sys.stderr, flush=True)


def _cell_config(assignments: list[str]) -> CellConfig:
    values = dict(word.partition("=")[::2] for word in assignments)
    try:
        return CellConfig.model_validate_strings(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter(f"{problems}. A cell needs: {', '.join(CellConfig.model_fields)}.") from None


def _outcome(result: CellResult) -> str:
    if result.status == "done":
        return f"{result.cell_id}: {result.error_percent:.2f} % error (median of the last epochs)"
    return f"{result.cell_id}: {result.status}: {result.reason}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _number(option: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise typer.BadParameter(
            f"{option} {word!r} is not a whole number. Pass numbers, by commas if several."
        ) from None


def _raise_on_signals() -> list[int]:
    """SIGTERM and a closed terminal end a study as Ctrl-C does: children first. The list gets the signal's number."""
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in STOPPING_SIGNALS:
        signal.signal(number, stop)
    return received
