from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from batchfree.study import Progress, Study, run_study
from batchfree.study._runner import _reason
from tests.study.forks import ForkedEngine, command, fork, in_fork
from tests.study.quick import numbers, quick_study


def children(out: Path) -> set[int]:
    """Live processes that run a cell of the study in `out`."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"cell" in words and any(word.startswith(bytes(out)) for word in words):
                found.add(int(folder.name))
    return found


def long_study() -> Study:
    return quick_study(norm="gn", train_images=64, epochs=30)


def long_command(out: Path) -> list[str]:
    """The same, typed."""
    words = ["study", "norm-batch", "--norms", "gn", "--norm-batch", "32,2", "--seeds", "1", "--epochs", "30"]
    return [*words, "--train-images", "64", "--jobs", "2", "--out", str(out)]


def run_interrupted(folder: Path) -> tuple[list[str], list[str], bool]:
    """The files of a study's cells after Ctrl-C; their logs, and whether all is whole, after the next run."""

    def interrupt_once_training(progress: Progress) -> None:
        if progress.epochs_done > 2:
            raise KeyboardInterrupt

    run_study(long_study(), folder / "whole", engine=ForkedEngine())
    out = folder / "out"
    try:
        run_study(long_study(), out, engine=ForkedEngine(), on_progress=interrupt_once_training)
    except KeyboardInterrupt:
        with pytest.raises(ChildProcessError):  # none is left
            os.waitpid(-1, os.WNOHANG)
    files = [path.name for path in out.glob("cells/*/*")]
    run_study(long_study(), out, engine=ForkedEngine())
    logs = [path.read_text() for path in out.glob("cells/*/log.txt")]
    return files, logs, numbers(out) == numbers(folder / "whole")


def test_an_interrupt_leaves_no_child_and_loses_nothing(tmp_path: Path) -> None:
    files, logs, is_whole = in_fork(run_interrupted, tmp_path)
    assert "checkpoint.safetensors" in files
    assert "result.json" not in files
    assert all("going on from step" in log for log in logs)
    assert is_whole


def run_command_and_signal(number: signal.Signals, folder: Path) -> tuple[int, str]:
    """The command's exit status and what it printed; its cell had begun to train."""
    out = folder / "out"
    study = fork(lambda: command(long_command(out), folder / "printed.txt"))
    printed = folder / "printed.txt"
    while not any(path.stat().st_size for path in out.glob("cells/*/metrics.jsonl")):
        assert os.waitpid(study, os.WNOHANG) == (0, 0), printed.read_text()
        time.sleep(0.05)
    os.kill(study, number)
    return os.waitstatus_to_exitcode(os.waitpid(study, 0)[1]), printed.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_and_its_children_with_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    status, printed = in_fork(run_command_and_signal, number, tmp_path)
    assert status == 128 + number
    assert "the same command goes on from there" in printed
    assert not children(tmp_path)
    assert list(tmp_path.rglob("checkpoint.safetensors"))
    assert not list(tmp_path.rglob("result.json"))


def run_killed_command_again(folder: Path) -> tuple[int, int, str, bool]:
    killed, _ = run_command_and_signal(signal.SIGKILL, folder)
    again = fork(lambda: command(long_command(folder / "out"), folder / "again.txt"))  # while its cell still leaves
    status = os.waitstatus_to_exitcode(os.waitpid(again, 0)[1])
    run_study(long_study(), folder / "whole", engine=ForkedEngine())
    (log,) = (folder / "out").glob("cells/*/log.txt")
    return killed, status, log.read_text(), numbers(folder / "out") == numbers(folder / "whole")


def test_children_of_a_killed_study_stop_by_themselves_and_the_next_one_goes_on_at_once(tmp_path: Path) -> None:
    killed, status, log, is_whole = in_fork(run_killed_command_again, tmp_path)
    assert killed == -signal.SIGKILL
    assert status == 0
    assert "Stopped; a checkpoint is written" in log
    assert "going on from step" in log
    assert is_whole


def test_a_crash_is_a_row_with_its_whole_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = "a reason of more than eighty characters, " * 3
    crash = tmp_path / "crash"
    crash.mkdir()
    # Python imports this module at start, in the cells: the data set's reader fails there
    (crash / "sitecustomize.py").write_text(
        f"import sys\nif 'cell' in sys.argv or 'cell' in sys.orig_argv:\n"
        f"    import sklearn.datasets\n    def load_digits(): raise RuntimeError({cause!r})\n"
        f"    sklearn.datasets.load_digits = load_digits\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(crash), os.environ.get("PYTHONPATH", "")]))
    results = run_study(quick_study(norm="gn"), tmp_path / "out")
    assert [result.status for result in results] == ["failed"]
    assert results[0].reason == f"ended with exit code 1: RuntimeError: {cause.strip()}"


def test_reasons_name_the_signal_or_the_exit_code_and_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("$ command\nTraceback\nValueError: no such image\n\n")
    assert _reason(1, log) == "ended with exit code 1: ValueError: no such image"
    assert _reason(-signal.SIGSEGV, log) == "killed by SIGSEGV: ValueError: no such image"
    assert _reason("its machine is gone", log) == "its machine is gone: ValueError: no such image"
    log.write_text("$ command\n")
    assert _reason(-signal.SIGKILL, log) == "killed by SIGKILL, as the system does when memory is short"
