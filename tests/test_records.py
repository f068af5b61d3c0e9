from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from batchfree.errors import RecordError
from batchfree.records import (
    CellConfig,
    CellResult,
    Comparison,
    Cost,
    EpochMetrics,
    Record,
    ReportSpec,
    Status,
    StudyRecord,
    read_cell,
    read_metrics,
    read_record,
    read_study,
    summarise,
    write_atomically,
    write_record,
)

CONFIG = CellConfig(
    study="norm-batch", data="digits", data_fingerprint="f" * 64, model="resnet8", norm="gn+ws", norm_batch=None,
    sgd_batch=32, groups="auto", protocol="fixed-sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-4,
    schedule="cosine", epochs=2, train_images=100, validation_images=50, seed=3, threads=1,
)  # fmt: skip


def epochs(*errors: float) -> list[EpochMetrics]:
    return [
        EpochMetrics(epoch=number, train_loss=1.0, validation_loss=2.0 * number, error_percent=error)
        for number, error in enumerate(errors, start=1)
    ]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_record(tmp_path / "config.json", CONFIG)
    assert read_record(tmp_path / "config.json", CellConfig) == CONFIG


def test_the_id_follows_every_setting_but_the_place_of_the_files() -> None:
    assert CONFIG.cell_id.startswith("gn-ws-s3-")
    ids = {CONFIG.cell_id}
    for change in ({"seed": 4}, {"learning_rate": 0.1}, {"norm": "gn"}, {"data_fingerprint": "0" * 64}, {"threads": 2}):
        ids.add(CONFIG.model_copy(update=change).cell_id)
    assert len(ids) == 6
    for place in ({"data_dir": "/data"}, {"data": "/moved/images"}):
        assert CONFIG.model_copy(update=place).cell_id == CONFIG.cell_id
    assert CONFIG.model_copy(update={"norm": "bn", "norm_batch": 4}).cell_id.startswith("bn-n4-s3-")


def test_a_cell_of_before_there_was_fine_tuning_keeps_its_id() -> None:
    assert CONFIG.cell_id == "gn-ws-s3-48caeaf258"  # as the schema without these fields gave it
    for change in ({"half": "first"}, {"rotation": 1.0}, {"keeps_weights": True}):
        assert CONFIG.model_copy(update=change).cell_id != CONFIG.cell_id


def test_a_plain_study_has_no_key_that_a_batchfree_of_before_fine_tuning_refuses(tmp_path: Path) -> None:
    record = StudyRecord(
        study="norms", title="t", reproduces="", command="c", settings={}, axes=("norm",), cells=(CONFIG,)
    )
    results = (summarise("id", epochs(50, 20), [1]), CellResult(cell_id="id", status="failed"))
    texts = [written(tmp_path, each) for each in (CONFIG, record, *results)]
    config, study, *outcomes = texts
    assert set(config) == set(study["cells"][0]) == {  # as the schema of then listed them
        "schema_version", "study", "protocol", "model", "weights", "weights_fingerprint", "norm", "norm_batch",
        "groups", "channels_per_group", "zero_gamma", "sgd_batch", "workers", "optimizer", "learning_rate",
        "momentum", "weight_decay", "schedule", "epochs", "augment", "data", "data_fingerprint", "data_dir", "split",
        "train_images", "validation_images", "image_size", "seed", "threads", "device",
    }  # fmt: skip
    for outcome in outcomes:
        assert set(outcome) == {
            "schema_version", "cell_id", "status", "reason", "error_percent", "final_error_percent",
            "best_error_percent", "recomputed_error_percent", "validation_loss", "num_groups",
        }  # fmt: skip


def test_what_bits_rule_added_leaves_other_cells_their_ids_and_names_its_own(tmp_path: Path) -> None:
    crop = {"image_size": 128, "augment": "crop-flip"}
    cropped = CONFIG.model_copy(update={**crop, "stored_size": 160, "mixup": 0.1, "max_steps": 5})
    found = written(tmp_path, cropped)
    assert (found["stored_size"], found["mixup"], found["max_steps"]) == (160, 0.1, 5)
    assert read_record(tmp_path / "record.json", CellConfig) == cropped
    values = dict(word.split("=", 1) for word in cropped.assignments())
    assert CellConfig.model_validate_strings(values) == cropped
    ids = {CONFIG.model_copy(update=crop).cell_id}
    for change in ({"stored_size": 160}, {"mixup": 0.1}, {"max_steps": 5}):
        ids.add(CONFIG.model_copy(update={**crop, **change}).cell_id)
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"stored_size": 160}, "image_size = None.*Give an image_size below it"),
        ({"stored_size": 128, "image_size": 128, "augment": "crop-flip"}, "held larger.*below it, or leave"),
        ({"stored_size": 160, "image_size": 128}, "augment = 'none', which crops nothing.*crop-flip, resized-crop"),
        ({"max_steps": 3}, "max_steps=3 with epochs=2 of 3 steps each.*Give epochs=1, or no max_steps"),
        ({"max_steps": 7}, "Give epochs=3, or no max_steps"),
        ({"max_steps": 0}, "greater than 0"),
        ({"mixup": -0.1}, "greater than or equal to 0"),
        ({"mixup": float("inf")}, "finite"),
    ],
)
def test_a_crop_mixup_or_number_of_steps_that_cannot_be_is_refused(fields: dict[str, Any], mend: str) -> None:
    with pytest.raises(ValidationError, match=mend):
        CellConfig.model_validate({**CONFIG.model_dump(), **fields})


def test_a_run_is_as_long_as_its_steps_or_its_epochs() -> None:
    assert (CONFIG.steps_per_epoch, CONFIG.total_steps) == (3, 6)  # 100 images in batches of 32
    assert CellConfig.model_validate({**CONFIG.model_dump(), "max_steps": 4}).total_steps == 4


def test_what_fine_tuning_added_is_written_where_it_says_something(tmp_path: Path) -> None:
    started = CONFIG.model_copy(update={"start": "copied", "pretraining": "bn-s3-0", "half": "first", "rotation": 1.5})
    found = written(tmp_path, started)
    assert (found["start"], found["pretraining"]) == ("copied", "bn-s3-0")
    assert (found["half"], found["rotation"]) == ("first", 1.5)
    assert written(tmp_path, CONFIG.model_copy(update={"keeps_weights": True}))["keeps_weights"] is True
    result = CellResult(cell_id="id", status="done", initial_error_percent=0.0, validation_loss=float("inf"))
    assert written(tmp_path, result)["initial_error_percent"] == 0.0
    assert read_record(tmp_path / "record.json", CellResult) == result


def written(folder: Path, record: Record) -> dict[str, Any]:
    write_record(folder / "record.json", record)
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


def test_an_arm_is_the_same_for_every_seed_and_another_for_every_start() -> None:
    started = CONFIG.model_copy(update={"start": "copied", "pretraining": "bn-s3-0"})
    other_seed = started.model_copy(update={"seed": 4, "pretraining": "bn-s4-0"})
    assert started.cell_id.startswith("gn-ws-copied-s3-")
    assert started.arm_id == other_seed.arm_id
    fresh = started.model_copy(update={"start": "fresh"})
    assert len({CONFIG.arm_id, started.arm_id, fresh.arm_id}) == 3


@pytest.mark.parametrize("fields", [{"start": "copied"}, {"pretraining": "bn-s0-0"}])
def test_a_start_and_its_pre_training_come_together(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"every start but scratch is from .* Give both, or"):
        CellConfig.model_validate({**CONFIG.model_dump(), **fields})


@pytest.mark.parametrize(
    ("norm", "start", "mend"),
    [
        ("ln", "calibrated", "norms that start so are gn. Give one of these, or start=scratch"),
        ("gn", "trained", "are bn, bn-frozen. .*, or start=scratch or start=fresh or start=copied"),
        ("bn-frozen", "scratch", "are none, bn, bn\\+ws, .*, or start=trained"),
    ],
)
def test_a_norm_and_a_start_that_do_not_go_together_are_refused(norm: str, start: str, mend: str) -> None:
    pretraining = None if start == "scratch" else "bn-s3-0"
    with pytest.raises(ValidationError, match=mend):
        CellConfig.model_validate({**CONFIG.model_dump(), "norm": norm, "start": start, "pretraining": pretraining})


def test_the_assignments_make_the_configuration_again() -> None:
    started = {
        "norm": "gn",
        "start": "copied",
        "pretraining": "bn-s3-0",
        "half": "second",
        "rotation": 30.0,
        "keeps_weights": True,
    }
    for config in (
        CONFIG,
        CONFIG.model_copy(update=started),
        CONFIG.model_copy(update={"groups": 8, "norm_batch": 2, "data": "/a path/with = signs"}),
    ):
        words = shlex.split(config.command("some where"))
        assert words[:2] == ["batchfree", "cell"]
        assert words[-2:] == ["--out", "some where"]
        values = dict(word.split("=", 1) for word in words[2:-2])
        assert CellConfig.model_validate_strings(values) == config


def test_the_error_is_the_median_of_the_last_five_epochs() -> None:
    result = summarise("id", epochs(90, 80, 70, 90, 1, 50, 20, 30, 10, 40), [1, 2])
    assert result.error_percent == 30  # of 50, 20, 30, 10, 40
    assert result.final_error_percent == 40
    assert result.best_error_percent == 1
    assert result.validation_loss == 20
    assert result.num_groups == (1, 2)


@pytest.mark.parametrize(
    ("errors", "median"), [((10,), 10), ((90, 20), 20), ((90, 20, 30), 25), ((90, 80, 70, 20, 30, 10), 20)]
)
def test_the_error_of_a_short_run_is_of_its_last_half(errors: tuple[float, ...], median: float) -> None:
    assert summarise("id", epochs(*errors), []).error_percent == median


def test_the_error_before_the_first_step_is_apart_from_the_epochs() -> None:
    before = EpochMetrics(epoch=0, train_loss=None, validation_loss=9.0, error_percent=1.0)
    result = summarise("id", [before, *epochs(50, 20, 30)], [])
    assert result.initial_error_percent == 1.0
    assert (result.error_percent, result.best_error_percent) == (25, 20)
    assert summarise("id", epochs(50, 20, 30), []).initial_error_percent is None


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_that_was_cut_short_is_left_out_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == ()
    lines = [line.model_dump_json() for line in epochs(3, 4)]
    path.write_text(f"{lines[0]}\n{lines[1][:20]}")
    assert [line.error_percent for line in read_metrics(path)] == [3]
    path.write_text(f"{lines[0][:20]}\n{lines[1]}\n")
    with pytest.raises(RecordError, match=str(path)):
        read_metrics(path)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "not a JSON record"),
        (b"[1, 2]", "not a JSON record"),
        (b'{"schema_version": 2, "cell_id"', "cut short or edited"),
        (b'{"schema_version": 1}', "schema version 1"),
        (b"{}", "schema version None"),
        (b'{"schema_version": 2, "cell_id": "a", "status": "fine"}', "status"),
        (b'{"schema_version": 2, "cell_id": "a", "status": "done", "colour": 1}', "colour.*Use the batchfree that"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes, pattern: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=pattern) as caught:
        read_record(path, CellResult)
    assert str(path) in str(caught.value)


def test_infinite_and_missing_numbers_survive(tmp_path: Path) -> None:
    metrics = EpochMetrics(epoch=1, train_loss=float("inf"), validation_loss=float("nan"), error_percent=90.0)
    write_record(tmp_path / "record.json", metrics)
    back = read_record(tmp_path / "record.json", EpochMetrics)
    assert back.train_loss == float("inf")
    assert back.validation_loss != back.validation_loss


def test_a_study_lists_its_cells_in_order_whether_they_ran_or_not(tmp_path: Path) -> None:
    second = CONFIG.model_copy(update={"seed": 1})
    compare = Comparison(title="d", reference={"norm": "bn", "zero_gamma": True})
    record = StudyRecord(
        study="norm-batch",
        title="t",
        reproduces="",
        command="c",
        settings={},
        axes=("norm",),
        cells=(CONFIG, second),
        report=ReportSpec(figure="bars", compare=(compare,)),
    )
    write_record(tmp_path / "study.json", record)
    folder = tmp_path / "cells" / second.cell_id
    folder.mkdir(parents=True)  # without config.json: it was killed before it had one
    result = CellResult(cell_id=second.cell_id, status="failed", reason="killed")
    write_record(folder / "result.json", result)
    study, cells = read_study(tmp_path)
    assert study == record
    assert study.report.compare[0].reference["zero_gamma"] is True  # and not 1 or "True"
    assert [cell.config for cell in cells] == [CONFIG, second]
    assert [cell.result for cell in cells] == [None, result]
    assert cells[1].cost is None
    write_record(folder / "config.json", second)
    assert read_cell(folder) == cells[1]


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no study"):
        read_study(tmp_path)


def test_recomputed_errors_are_summarised_over_the_last_epochs_that_have_one() -> None:
    lines = [
        line.model_copy(update={"recomputed_error_percent": recomputed})
        for line, recomputed in zip(epochs(*range(10, 0, -1)), (*[99.0] * 5, None, 8.0, None, 4.0, 6.0), strict=True)
    ]
    assert summarise("id", lines, []).recomputed_error_percent == 6.0  # of 8, 4 and 6: the 99 is older
    assert summarise("id", epochs(50, 40), []).recomputed_error_percent is None


def test_seconds_per_step_are_of_training_alone() -> None:
    cost = Cost(seconds=30.0, training_seconds=20.0, steps=100, peak_memory_bytes=1)
    assert cost.seconds_per_step == 0.2
    assert cost.model_copy(update={"steps": 0}).seconds_per_step is None


@pytest.mark.parametrize(
    ("status", "is_final"),
    [
        ("done", True),
        ("diverged", True),
        ("skipped", True),
        ("failed", False),
        ("out of memory", False),
        ("timed out", False),
    ],
)
def test_what_another_time_may_change_is_not_final(status: Status, is_final: bool) -> None:
    assert CellResult(cell_id="a", status=status).is_final == is_final


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"norm": "bn"}, "norm_batch=None"),
        ({"norm": "bn+ws", "norm_batch": 5}, "norm_batch=5"),
        ({"norm": "bn", "norm_batch": 16, "workers": 4}, "norm_batch=16 and 8 images"),
        ({"workers": 3}, "does not split over 3 workers"),
    ],
)
def test_a_norm_batch_that_does_not_fit_is_refused(change: dict[str, object], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        CellConfig.model_validate(CONFIG.model_dump() | change)
    CellConfig.model_validate(CONFIG.model_dump() | change | {"norm": "gn", "norm_batch": None, "workers": 1})


def test_published_weights_are_known_by_their_fingerprint_and_not_by_their_place() -> None:
    here = CONFIG.model_copy(update={"weights": "/here/w.npz", "weights_fingerprint": "a" * 64})
    assert here.model_copy(update={"weights": "/there/w.npz"}).cell_id == here.cell_id
    assert here.model_copy(update={"weights_fingerprint": "b" * 64}).cell_id != here.cell_id
    assert here.model_copy(update={"weights": "pretrained", "weights_fingerprint": None}).cell_id != CONFIG.cell_id
