"""The command as a user types it, in a process of its own."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import batchfree

QUICK = ["--train-images", "96", "--epochs", "1", "--seeds", "1"]


def batchfree_command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "batchfree", *words], cwd=cwd, capture_output=True, text=True)


def test_version_help_and_info(tmp_path: Path) -> None:
    assert batchfree_command("--version", cwd=tmp_path).stdout == f"batchfree {batchfree.__version__}\n"
    shown = batchfree_command("study", "norm-batch", "--help", cwd=tmp_path).stdout
    for option in (
        "--data",
        "--model",
        "--norms",
        "--norm-batch",
        "--sgd-batch",
        "--seeds",
        "--epochs",
        "--train-images",
    ):
        assert option in shown
    info = batchfree_command("info", cwd=tmp_path).stdout
    assert "baseline" in info
    assert f"torch {torch.__version__.partition('+')[0]}" in info
    assert "not in use: torch's own operators" in info
    assert "not in use: the kernels as operators of a compiled graph, because torch.compile is not tracing" in info


def test_info_refuses_an_instruction_set_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFREE_ISA", "mmx")
    done = batchfree_command("info", cwd=tmp_path)
    assert done.returncode == 2
    assert "BATCHFREE_ISA" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_study_ends_with_its_report(tmp_path: Path) -> None:
    done = batchfree_command(
        "study", "norm-batch", "--norms", "bn,gn", "--norm-batch", "32,1", *QUICK, "--out", "out", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Report: out/report.html" in done.stdout
    assert "cells 3/3" in done.stderr
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["norm"], row["norm_batch"], row["status"]) for row in rows] == [
        ("bn", "32", "done"),
        ("bn", "1", "done"),
        ("gn", "", "done"),
    ]
    (tmp_path / "out" / "report.html").unlink()
    assert batchfree_command("report", "out", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--norms", "bn,gm"], "Did you mean gn?"),
        (["--data", "fashionmnist"], "Did you mean fashion-mnist?"),
        (["--model", "resnet9"], "Did you mean resnet8"),
        (["--norm-batch", "32,5"], "does not divide the SGD batch of 32"),
        (["--norm-batch", "32,x"], 'norm_batch = "x" was given. Input should be a valid integer'),
        (["--groups", "5"], "do not split into 5 equal groups"),
        (["--groups", "many"], "Input should be a valid integer"),
        (["--set", "momentum"], "It is KEY=VALUE"),
        (["--set", "momentun=0.5"], "Did you mean momentum"),
        (["--preset", "smal"], "Did you mean small"),
        (["--engine", "rya"], "Did you mean ray"),
        (["--time-limit", "0"], "minutes above 0"),
        (["--memory-limit", "8 apples"], "Pass for instance 8GiB"),
        (["--train-images", "5000"], "from 1 to 1438"),
        (["--data", "fashion-mnist", "--data-dir", "."], "apt-get install dataset-fashion-mnist"),
        (["--data", "./nowhere"], "not a folder"),
        (["--data", "."], "no class folder"),
        (["--seeds", "three"], "valid integer"),
    ],
)
def test_bad_input_is_refused_with_status_2_and_nothing_written(
    words: list[str], expected: str, tmp_path: Path
) -> None:
    done = batchfree_command("study", "norm-batch", *words, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_studies_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\ntitle = "Mine"\n[[arms]]\nnorm = ["bn", "gm"]\n')
    for word, expected in (
        ("norm-bach", "Did you mean norm-batch"),
        (
            "mine.toml",
            "mine.toml: unknown norm 'gm'. Allowed: none, bn, bn-frozen, bn+ws, gn, gn+ws, ln, in. Did you mean gn?",
        ),
        ("other.toml", "cannot be read"),
    ):
        done = batchfree_command("study", word, "--out", "out", cwd=tmp_path)
        assert done.returncode == 2
        assert expected in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_printed_study_can_be_changed_planned_run_and_looked_at(tmp_path: Path) -> None:
    shown = batchfree_command("study", "show", "norms", cwd=tmp_path).stdout
    (tmp_path / "mine.toml").write_text(shown.replace('name = "norms"', 'name = "mine"'))
    words = ["study", "mine.toml", "--norms", "gn,ln", *QUICK, "--set", "channels_per_group=8"]
    planned = batchfree_command(*words, "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "2 of 2 runs are missing in runs/mine" in " ".join(planned.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    assert batchfree_command(*words, cwd=tmp_path).returncode == 0
    status = batchfree_command("study", "status", "runs/mine", cwd=tmp_path).stdout
    assert "mine: 2 done, of 2 runs" in status
    (result,) = (tmp_path / "runs" / "mine" / "cells").glob("gn-*/result.json")
    assert '"num_groups":[2,2,2,4,4,8,8]' in "".join(result.read_text().split())
    result.unlink()
    assert "mine: 1 unfinished, 1 done" in batchfree_command("study", "status", "runs/mine", cwd=tmp_path).stdout
    assert batchfree_command("study", "retry", "runs/mine", cwd=tmp_path).returncode == 0
    assert result.exists()


def test_settings_and_memory_are_printed(tmp_path: Path) -> None:
    settings = batchfree_command("study", "show", "--settings", cwd=tmp_path).stdout
    for key in ("norm_batch", "weight_decay", "zero_gamma", "workers", "stored_size", "mixup", "max_steps", "rule"):
        assert key in settings
    memory = batchfree_command("study", "memory", "resnet8", "--image", "1x28x28", "--budget", "64MiB", cwd=tmp_path)
    assert memory.returncode == 0, memory.stderr
    assert "batch at most" in memory.stdout


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = batchfree_command("study", "norm-batch", *QUICK, "--out", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no study" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert batchfree_command("report", ".", cwd=tmp_path).returncode == 2


def test_an_out_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/out", "/proc/nothing/here"):
        done = batchfree_command("study", "norm-batch", *QUICK, "--out", out, cwd=tmp_path)
        assert done.returncode == 2
        assert "Pass another --out" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cell_with_missing_or_wrong_settings_is_refused(tmp_path: Path) -> None:
    for words in (["seed=1"], ["norm=gm"], ["nonsense"], ["norm=bn", "sgd_batch=32", "norm_batch=5"]):
        done = batchfree_command("cell", *words, "--out", "alone", cwd=tmp_path)
        assert done.returncode == 2
        assert "A cell needs" in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "alone").exists()
