"""`batchfree study`: run, show, status, retry, memory."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from batchfree.cli._exit import FAILED, SIGNALLED, raise_on_signals
from batchfree.cli._overrides import overrides_from
from batchfree.cli._progress import ProgressBar

if TYPE_CHECKING:
    from batchfree.records import CellResult

__all__ = ["study_app"]


class StudyGroup(TyperGroup):
    """`batchfree study NAME` is `batchfree study run NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # its types are private to typer
        """What is no command is the name, or the file, of a study."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


study_app = typer.Typer(
    cls=StudyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train one network in several arms and compare them. `batchfree study NAME` runs a built-in study: "
    "norm-batch, norms, groups, depth, vgg, pets, bit, recipe or fine-tune; a path runs the study in that TOML file.",
)

Jobs = Annotated[int | None, typer.Option(help="Runs at the same time. [default: as many as cores]")]
EngineName = Annotated[str, typer.Option("--engine", help="Where runs are made: local, ray or slurm.")]
RayAddress = Annotated[str | None, typer.Option(help="Of a running Ray cluster. [default: Ray on this machine]")]
CpusPerCell = Annotated[int | None, typer.Option(help="For ray and slurm. [default: the run's threads]")]
GpusPerCell = Annotated[float, typer.Option(help="For ray and slurm.")]
Retries = Annotated[int, typer.Option(help="For ray: how often a run is started again whose node was lost.")]
SlurmPartition = Annotated[str | None, typer.Option(help="[default: the cluster's own]")]
SlurmCluster = Annotated[str, typer.Option(help="slurm, or local to try submitit on this machine.")]
TimeLimit = Annotated[float | None, typer.Option(help="Minutes of one start of a run; `retry` goes on after them.")]
MemoryLimit = Annotated[str | None, typer.Option(help="Of one run, for instance 8GiB.")]


@study_app.command()
def run(
    study: Annotated[str, typer.Argument(help="A built-in study's name, or a TOML file.")],
    preset: Annotated[str | None, typer.Option(help="small: minutes on two cores; paper: the paper's.")] = None,
    protocol: Annotated[str | None, typer.Option(help="How batch sizes and learning rate hang together.")] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, fashion-mnist, cifar10, pets, or a folder of class folders.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where a named data set's files lie.")] = None,
    split: Annotated[str | None, typer.Option(help="Of pets: official or blog.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch data that is not there.")] = False,
    image_size: Annotated[int | None, typer.Option(help="Side of the images, in pixels.")] = None,
    train_images: Annotated[int | None, typer.Option(help="How many training images. [default: all]")] = None,
    validation_images: Annotated[int | None, typer.Option(help="How many validation images. [default: all]")] = None,
    augment: Annotated[str | None, typer.Option(help="none, crop-flip, resized-crop or blog.")] = None,
    model: Annotated[
        str | None, typer.Option(help="resnet8 ... resnet56, vgg16-small, torchvision:NAME or timm:NAME; by commas.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="pretrained, or a .safetensors or .npz file.")] = None,
    norms: Annotated[
        str | None, typer.Option(help="Which arms: none, bn, bn-frozen, bn+ws, gn, gn+ws, ln, in; by commas.")
    ] = None,
    norm_batch: Annotated[
        str | None, typer.Option(help="How many images share Batch Norm's statistics, by commas.")
    ] = None,
    groups: Annotated[str | None, typer.Option(help="Groups of each norm of gn and gn+ws: numbers, or auto.")] = None,
    sgd_batch: Annotated[int | None, typer.Option(help="How many images make one step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, whatever the batch.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adam.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs per run.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs per arm, with seeds 0, 1, ...")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per run; part of what is compared.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, or an accelerator as torch names it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: KEY=VALUE, a list is an axis.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for cells and report; run again, it does what is missing. [default: runs/NAME-PROTOCOL-PRESET]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which runs there are and how long they take.")
    ] = False,
    jobs: Jobs = None,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    cpus_per_cell: CpusPerCell = None,
    gpus_per_cell: GpusPerCell = 0,
    retries: Retries = 3,
    slurm_partition: SlurmPartition = None,
    slurm_cluster: SlurmCluster = "slurm",
    time_limit: TimeLimit = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Run a study; run again, it does what is missing."""
    from batchfree.cli._engines import build_engine, limits_from
    from batchfree.study import load_study, run_study

    given = overrides_from(
        {
            "data": data,
            "data_dir": None if data_dir is None else str(data_dir.resolve()),
            "split": split,
            "image_size": image_size,
            "train_images": train_images,
            "validation_images": validation_images,
            "augment": augment,
            "model": model,
            "weights": weights,
            "norm": norms,
            "norm_batch": norm_batch,
            "groups": groups,
            "sgd_batch": sgd_batch,
            "learning_rate": lr,
            "optimizer": optimizer,
            "epochs": epochs,
            "seeds": seeds,
            "threads": threads,
            "device": device,
        },
        settings or [],
    )
    chosen = load_study(study, preset=preset, protocol=protocol, overrides=given)
    out = Path("runs") / "-".join(filter(None, (chosen.name, protocol, preset))) if out is None else out
    if dry_run:
        from batchfree.cli._tables import print_plan

        print_plan(chosen, out, jobs=jobs, download=download)
        return
    command = shlex.join(["batchfree", *sys.argv[1:]])
    limits = limits_from(time_limit, memory_limit)
    engine_options = (engine, jobs, ray_address, cpus_per_cell, gpus_per_cell, retries, slurm_partition, slurm_cluster)
    threads_per_cell = max(arm.threads * arm.workers for arm in chosen.runs)

    def work(bar: ProgressBar) -> list[CellResult]:
        return run_study(
            chosen,
            out,
            engine=build_engine(out, threads_per_cell, limits, *engine_options),
            limits=limits,
            download=download,
            command=command,
            on_plan=_say_skipped,
            on_progress=bar.show,
        )

    _finish(out, work)


@study_app.command()
def retry(
    out: Annotated[Path, typer.Argument(help="The --out folder of a study.", metavar="DIR")],
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin unfinished runs anew.")] = False,
    jobs: Jobs = None,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    cpus_per_cell: CpusPerCell = None,
    gpus_per_cell: GpusPerCell = 0,
    retries: Retries = 3,
    slurm_partition: SlurmPartition = None,
    slurm_cluster: SlurmCluster = "slurm",
    time_limit: TimeLimit = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Run what a study has not finished, by its files alone."""
    from batchfree.cli._engines import build_engine, limits_from
    from batchfree.records import read_study
    from batchfree.study import retry_study

    record, _ = read_study(out)
    limits = limits_from(time_limit, memory_limit)
    engine_options = (engine, jobs, ray_address, cpus_per_cell, gpus_per_cell, retries, slurm_partition, slurm_cluster)
    threads_per_cell = max((cell.threads * cell.workers for cell in record.cells), default=1)

    def work(bar: ProgressBar) -> list[CellResult]:
        return retry_study(
            out,
            engine=build_engine(out, threads_per_cell, limits, *engine_options),
            limits=limits,
            from_start=from_start,
            on_progress=bar.show,
        )

    _finish(out, work)


@study_app.command()
def status(out: Annotated[Path, typer.Argument(help="The --out folder of a study.", metavar="DIR")]) -> None:
    """How far a study is, run by run; torch is not needed."""
    from batchfree.cli._tables import print_status

    print_status(out)


@study_app.command()
def show(
    study: Annotated[str, typer.Argument(help="A built-in study's name.")] = "",
    settings: Annotated[bool, typer.Option("--settings", help="Every key a study may set.")] = False,
) -> None:
    """Print a study's file, to copy and change; or the settings that it may use."""
    from batchfree.cli._tables import print_settings
    from batchfree.study import study_text

    if settings:
        print_settings()
    else:
        print(study_text(study), end="")


@study_app.command()
def memory(
    model: Annotated[str, typer.Argument(help="A small network, torchvision:NAME or timm:NAME.")],
    image: Annotated[str, typer.Option(help="Channels and sides of one image.")] = "3x224x224",
    budget: Annotated[str, typer.Option(help="Memory to stay under.")] = "8GiB",
    norms: Annotated[str, typer.Option(help="Which arms, by commas.")] = "bn,gn,gn+ws",
    classes: Annotated[int, typer.Option(help="Of the classifier.")] = 1000,
) -> None:
    """Measure what a model needs per image, and the largest batch that fits."""
    from batchfree.cli._tables import print_memory

    print_memory(model, image, budget, [word.strip() for word in norms.split(",")], classes)


def _finish(out: Path, work: Callable[[ProgressBar], list[CellResult]]) -> None:
    """Runs to the end, builds the report, says what is not done, and ends with the status that says so."""
    from batchfree.report import build_report

    received = raise_on_signals()
    try:
        with ProgressBar() as bar:
            results = work(bar)
    except KeyboardInterrupt:
        print(f"\nStopped. Finished cells are kept in {out}; the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(SIGNALLED + received[0]) from None
    print(f"Report: {build_report(out)}")
    for result in results:
        if result.status != "done":
            again = "" if result.is_final else ". The same command tries it again"
            print(f"{result.cell_id} {result.status}: {result.reason.rstrip('.')}{again}.", file=sys.stderr)
    if any(not result.is_final for result in results):
        raise typer.Exit(FAILED)


def _say_skipped(plan: Any) -> None:
    for reason in dict.fromkeys(plan.skipped.values()):
        count = list(plan.skipped.values()).count(reason)
        print(f"{count} of {len(plan.cells)} runs are skipped: {reason}", file=sys.stderr)
