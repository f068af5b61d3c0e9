"""Exports, read back with each format's own reader."""

from __future__ import annotations

import csv
import math
import sqlite3
from pathlib import Path

import pytest

from batchfree.errors import ArgumentError, MissingExtraError, RecordError
from batchfree.export import FORMATS, Format, export
from batchfree.records import EpochMetrics
from tests.report.sample_study import SampleStudy

ODD = 'killed, by "signal" 9\nlast line = é'


def sample() -> SampleStudy:
    study = SampleStudy().add("bn", 8, {0: 10.5, 1: "diverged: loss is nan"}, recomputed={0: 8.25})
    study.add("gn", None, {0: 9.0, 1: f"failed: {ODD}", 2: "missing"}, groups=16, zero_gamma=False)
    study.metrics[study.cells[0].cell_id] = [
        EpochMetrics(epoch=1, train_loss=math.inf, validation_loss=math.nan, error_percent=60.0),
        EpochMetrics(
            epoch=2,
            train_loss=0.1 + 0.2,
            validation_loss=0.25,
            error_percent=10.5,
            recomputed_error_percent=8.25,
            feature_percentiles=(-2.0, -0.5, 0.5, 2.0),
        ),
    ]
    return study


@pytest.fixture(scope="module")
def study() -> SampleStudy:
    return sample()


@pytest.fixture(scope="module")
def out(study: SampleStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study.write(tmp_path_factory.mktemp("study"))


def ids(study: SampleStudy) -> list[str]:
    return [cell.cell_id for cell in study.cells]


def test_csv_holds_every_cell_and_every_epoch(out: Path, study: SampleStudy) -> None:
    place = export(out, "csv")
    assert place == out / "export" / "csv"
    with open(place / "cells.csv", encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["cell_id"] for row in cells] == ids(study)
    assert [row["status"] for row in cells] == ["done", "diverged", "done", "failed", "missing"]
    assert cells[3]["reason"] == ODD
    assert (cells[0]["norm_batch"], cells[2]["norm_batch"]) == ("8", "")
    assert (cells[0]["groups"], cells[2]["groups"], cells[2]["zero_gamma"]) == ("auto", "16", "false")
    assert (cells[0]["error_percent"], cells[0]["recomputed_error_percent"]) == ("10.5", "8.25")
    assert (cells[0]["seconds_per_step"], cells[2]["num_groups"]) == ("0.1", "1/1/2/2/4")
    assert cells[0]["environment_torch"] == "2.14.1"
    assert cells[4]["seconds"] == cells[4]["environment_torch"] == ""
    with open(place / "epochs.csv", encoding="utf-8", newline="") as file:
        epochs = list(csv.DictReader(file))
    assert len(epochs) == 2 + 1 + 3 + 1
    assert [row["train_loss"] for row in epochs[:2]] == ["inf", repr(0.1 + 0.2)]
    assert [row["feature_percentile_99"] for row in epochs[:2]] == ["", "2.0"]


def test_parquet_holds_the_same_numbers_with_their_types(out: Path, study: SampleStudy) -> None:
    import pyarrow.parquet

    place = export(out, "parquet")
    cells = pyarrow.parquet.read_table(place / "cells.parquet")
    assert cells.column("cell_id").to_pylist() == ids(study)
    assert cells.column("norm_batch").to_pylist() == [8, 8, None, None, None]
    assert cells.column("zero_gamma").to_pylist() == [None, None, False, False, False]
    assert cells.column("error_percent").to_pylist() == [10.5, None, 9.0, None, None]
    kinds = ("groups", "string"), ("validation_images", "int64"), ("learning_rate", "double"), ("num_groups", "string")
    assert [str(cells.schema.field(name).type) for name, _ in kinds] == [kind for _, kind in kinds]
    assert cells.column("reason").to_pylist()[3] == ODD
    epochs = pyarrow.parquet.read_table(place / "epochs.parquet").to_pylist()
    assert math.isnan(epochs[0]["validation_loss"])
    assert epochs[1] == {
        "cell_id": ids(study)[0],
        "epoch": 2,
        "train_loss": 0.1 + 0.2,
        "validation_loss": 0.25,
        "error_percent": 10.5,
        "recomputed_error_percent": 8.25,
        "feature_percentile_1": -2.0,
        "feature_percentile_20": -0.5,
        "feature_percentile_80": 0.5,
        "feature_percentile_99": 2.0,
    }


def test_tensorboard_reads_every_scalar_and_the_configuration(out: Path, study: SampleStudy) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    place = export(out, "tensorboard")
    runs = {path.parent.name: path for path in place.glob("*/*tfevents*")}
    assert sorted(runs) == sorted(ids(study))
    scalars: dict[str, list[tuple[int, float]]] = {}
    text = ""
    for event in EventFileLoader(str(runs[ids(study)[0]])).Load():
        for value in event.summary.value:
            if value.tag == "configuration":
                text = value.tensor.string_val[0].decode()
            else:
                scalars.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    assert scalars["error_percent"] == [(1, 60.0), (2, 10.5)]
    assert scalars["recomputed_error_percent"] == [(2, 8.25)]
    assert scalars["train_loss"][0] == (1, math.inf)
    assert "status=done" in text
    assert "norm_batch=8" in text


@pytest.fixture(scope="module")
def mlflow_store(out: Path) -> Path:
    return export(out, "mlflow") / "mlflow.db"


def test_mlflow_has_a_run_per_cell_with_parameters_metrics_and_status(mlflow_store: Path, study: SampleStudy) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{mlflow_store}")
    experiment = client.get_experiment_by_name("norm-batch")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == sorted(ids(study))
    first, _, _, failed, missing = (runs[cell_id] for cell_id in ids(study))
    assert (first.info.status, failed.info.status, missing.info.status) == ("FINISHED", "FAILED", "RUNNING")
    assert first.data.params["norm_batch"] == "8"
    assert first.data.metrics["result_error_percent"] == 10.5
    assert failed.data.tags["batchfree.reason"] == ODD
    assert missing.data.tags["batchfree.status"] == "missing"
    history = client.get_metric_history(first.info.run_id, "error_percent")
    assert [(metric.step, metric.value) for metric in history] == [(1, 60.0), (2, 10.5)]


def test_mlflow_store_is_one_sound_sqlite_file_that_names_its_final_place(mlflow_store: Path) -> None:
    assert sorted(path.name for path in mlflow_store.parent.iterdir()) == [".batchfree-export", "mlflow.db"]
    with sqlite3.connect(mlflow_store) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        places = {row[0] for row in database.execute("SELECT artifact_uri FROM runs")}
    assert all(place.startswith((mlflow_store.parent / "artifacts").as_uri()) for place in places)


@pytest.mark.parametrize("to", ["csv", "parquet", "tensorboard"])
def test_exporting_again_replaces_the_earlier_export_with_the_same_bytes(out: Path, tmp_path: Path, to: Format) -> None:
    def written() -> dict[str, bytes]:
        return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    place = export(out, to, tmp_path / "deep" / "there")
    first = written()
    (place / "stale").write_text("of an earlier export")
    export(out, to, place)
    assert written() == first
    assert list(place.parent.iterdir()) == [place]


def test_what_batchfree_did_not_write_is_refused_and_left(out: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for foreign in (mine, mine / "thesis.txt"):
        with pytest.raises(ArgumentError, match="exists and is no export"):
            export(out, "csv", foreign)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("has_earlier", [False, True])
def test_an_export_that_fails_leaves_what_was_there(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_earlier: bool
) -> None:
    place = tmp_path / "there"
    if has_earlier:
        export(out, "csv", place)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv, "writer", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(out, "csv", place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_unknown_format_names_the_known_ones(out: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        export(out, "parket", out / "x")  # type: ignore[arg-type]
    assert all(name in str(caught.value) for name in FORMATS)


def test_a_folder_without_a_study_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        export(tmp_path, "csv")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named_with_its_pip_command(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] in ("pyarrow", "tensorboard", "mlflow"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] in ("pyarrow", "tensorboard", "mlflow")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    for to in ("parquet", "tensorboard", "mlflow"):
        with pytest.raises(MissingExtraError, match=r"pip install 'batchfree\[export\]'"):
            export(out, to, tmp_path / to)
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_cells_is_exported(tmp_path: Path) -> None:
    out = SampleStudy().write(tmp_path / "study")
    assert (export(out, "csv") / "epochs.csv").read_text().count("\n") == 1
    export(out, "parquet")
