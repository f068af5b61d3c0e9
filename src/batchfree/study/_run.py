"""From a study to its results: plan, check, run; and running again what an interrupted one left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchfree.errors import ConversionError, StudyError
from batchfree.records import CellConfig, CellResult, StudyRecord, read_record, write_record
from batchfree.study._arm import build_network
from batchfree.study._cell import CHECKPOINT
from batchfree.study._checkpoint import remove_checkpoints
from batchfree.study._definition import Loaded, Study
from batchfree.study._engine import Engine, LocalEngine
from batchfree.study._environment import check_device
from batchfree.study._folder import only_writer, says_what_to_do_when_full
from batchfree.study._models import check_model_name
from batchfree.study._runner import Limits, Progress, StudyRun, is_finished

__all__ = ["Plan", "check_names", "plan_loaded", "plan_study", "retry_study", "run_study"]


@dataclass(frozen=True)
class Plan:
    """The cells of a study, and why some of them cannot be run."""

    cells: tuple[CellConfig, ...]
    skipped: dict[str, str]  # reason by cell id


def plan_study(study: Study, *, download: bool = False) -> Plan:
    """Every cell, checked down to building each arm's network once; nothing is written.

    An arm whose network cannot be built is skipped where others can be: Batch Norm at norm batch 1 on maps of 1x1.

    Args:
        download: whether data that is not there may be fetched.

    Raises:
        StudyError, DataError, ConversionError: a setting is refused, or no network at all can be built.
    """
    check_names(study)  # before the data, which takes longer
    study = study.decided(download=download)
    return plan_loaded(study, study.load(download=download))


def plan_loaded(study: Study, loaded: Loaded) -> Plan:
    """`plan_study` with the data that `Study.load` gave, and rules that are decided."""
    cells = study.cells(loaded)
    by_fingerprint = {fingerprint: data for data, fingerprint in loaded.values()}
    skipped: dict[str, str] = {}
    reasons: dict[str, StudyError | ConversionError] = {}
    for cell in cells:
        arm = cell.arm_id
        if cell.seed == 0:
            try:
                build_network(cell, by_fingerprint[cell.data_fingerprint])
            except (StudyError, ConversionError) as reason:
                if cell.groups != "auto" and "groups" not in study.axes:
                    raise  # a number that was given for every arm, and not one of many that are tried
                reasons[arm] = reason
        if arm in reasons:
            skipped[cell.cell_id] = str(reasons[arm])
    if len(skipped) == len(cells):
        raise next(iter(reasons.values()))
    return Plan(cells, skipped)


def check_names(study: Study) -> None:
    """Refuses models and devices that are not there, before any data is read."""
    for model in dict.fromkeys(arm.model for arm in study.runs):
        check_model_name(model)
    for device in dict.fromkeys(arm.device for arm in study.runs):
        check_device(device)


def run_study(
    study: Study,
    out: Path,
    *,
    jobs: int | None = None,
    engine: Engine | None = None,
    limits: Limits | None = None,
    download: bool = False,
    command: str = "",
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[CellResult]:
    """Runs every cell of the study that `out` does not hold yet.

    Args:
        study: as `load_study` gives it.
        out: made if it is not there; one study per folder.
        jobs: cells at the same time on this machine; as many as the cores hold at their threads where `None`.
        engine: where cells run; processes on this machine where `None`.
        limits: of one start of a cell.
        download: whether data that is not there may be fetched.
        command: what the user typed, kept with the study.
        on_plan: called once, before anything is written.
        on_progress: called a few times a second.

    Returns:
        One result per cell, in the study's order. A cell that crashed or hit a limit runs again the next time; one
        that diverged, or cannot be built, has its result.

    Raises:
        StudyError, DataError, ConversionError: nothing has been written; or, while it runs, the disk is full.
        KeyboardInterrupt: after every job has written its checkpoint and ended.
    """
    threads = max(arm.threads * arm.workers for arm in study.runs)
    engine = LocalEngine(jobs, threads) if engine is None else engine
    plan = plan_study(study, download=download)
    record = study.record(plan.cells, command)
    _check_owner(out, record)
    on_plan(plan)
    with only_writer(out):
        with says_what_to_do_when_full(out):
            write_record(out / "study.json", record)
            for cell_id, reason in plan.skipped.items():
                folder = out / "cells" / cell_id
                folder.mkdir(parents=True, exist_ok=True)
                write_record(folder / "result.json", CellResult(cell_id=cell_id, status="skipped", reason=reason))
        return StudyRun(out, plan.cells, engine, limits or Limits(), on_progress).finish()


def retry_study(
    out: Path,
    *,
    jobs: int | None = None,
    engine: Engine | None = None,
    limits: Limits | None = None,
    from_start: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[CellResult]:
    """Runs what the study in `out` has not finished, by its files alone.

    Args:
        from_start: unfinished cells begin anew instead of from their checkpoints.

    Raises:
        StudyError, RecordError: `out` holds no study, or somebody is at work in it.
    """
    path = out / "study.json"
    if not path.exists():
        raise StudyError(f"{out} holds no study: study.json is not there. Pass the --out folder of one.")
    record = read_record(path, StudyRecord)
    threads = max((cell.threads * cell.workers for cell in record.cells), default=1)
    engine = LocalEngine(jobs, threads) if engine is None else engine
    with only_writer(out):
        if from_start:
            with says_what_to_do_when_full(out):
                _forget_checkpoints(out, record.cells)
        return StudyRun(out, record.cells, engine, limits or Limits(), on_progress).finish()


def _forget_checkpoints(out: Path, cells: Sequence[CellConfig]) -> None:
    for cell in cells:
        folder = out / "cells" / cell.cell_id
        if not is_finished(out, cell):
            remove_checkpoints(folder / CHECKPOINT)
            (folder / "environment.json").unlink(missing_ok=True)


def _check_owner(out: Path, record: StudyRecord) -> None:
    """Refuses an `out` that holds something else than this study."""
    path = out / "study.json"
    if path.exists():
        owner = read_record(path, StudyRecord)
        if [cell.cell_id for cell in owner.cells] == [cell.cell_id for cell in record.cells]:
            return
        names = sorted(owner.settings.keys() | record.settings.keys())
        differing = [
            f"{name}: {owner.settings.get(name, 'default')} there, {record.settings.get(name, 'default')} here"
            for name in names
            if owner.settings.get(name) != record.settings.get(name)
        ] or ["the data set's images"]
        raise StudyError(
            f"{out} was made by a different study ({'; '.join(differing)}). A folder holds one study, so that its "
            f"report compares like with like. Pass another --out, or the settings of the first: {owner.command}"
        )
    # hidden: the lock, and what a start that was killed had half written
    if out.exists() and (not out.is_dir() or any(not entry.name.startswith(".") for entry in out.iterdir())):
        raise StudyError(
            f"{out} exists and holds no study. A new or empty folder is needed. Pass another --out, or empty this one."
        )
