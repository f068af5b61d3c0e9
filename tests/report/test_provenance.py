"""What the page says about how the study was run. Read from the page, where people read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchfree.records import write_record
from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import ENVIRONMENT, SampleStudy


def test_what_all_runs_share_is_said_once(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 3: 10.0}).add("gn", None, {0: 9.0, 3: 9.0})
    terms = Page(build_report(study.write(tmp_path))).terms
    assert terms["Model"] == "resnet8"
    assert terms["Training images"] == "1,078"
    assert terms["Learning rate"] == "0.1, cosine schedule"
    assert terms["Optimiser"] == "SGD, momentum 0.9, weight decay 0.0001"
    assert terms["SGD batch"] == "32"
    assert terms["Seeds"] == "0, 3"
    assert terms["Time of all runs together"] == "50 s"
    assert terms["Data"].startswith("digits (SHA-256 ab12ab12ab12")


def test_what_differs_between_norm_batches_names_them(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper").add("bn", 32, {0: 10.0}).add("bn", 8, {0: 10.0}).add("gn", 8, {0: 10.0})
    terms = Page(build_report(study.write(tmp_path))).terms
    assert terms["SGD batch"] == "256 at norm batch 32; 64 at norm batch 8"
    assert terms["Learning rate"] == "0.1, cosine schedule at norm batch 32; 0.025, cosine schedule at norm batch 8"


def test_an_axis_lists_its_values(tmp_path: Path) -> None:
    study = SampleStudy(axes=("norm", "groups", "model")).add("bn", 32, {0: 1.0})
    study.add("gn", None, {0: 1.0}, groups=8).add("gn", None, {0: 1.0}, groups=4, model="resnet20")
    terms = Page(build_report(study.write(tmp_path))).terms
    assert terms["Groups asked for"] == "8; 4"
    assert terms["Model"] == "resnet8; resnet20"


def test_crop_mixup_and_steps_are_said(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"stored_size": 160, "image_size": 128, "augment": "crop-flip", "mixup": 0.1}
    terms = Page(build_report(SampleStudy().add("gn", None, {0: 1.0}, **fields).write(tmp_path))).terms
    assert terms["Image side"] == "128 pixels, of 160 before the crop in training"
    assert terms["Augmentation"] == "crop-flip, mixup with alpha 0.1"


def test_steps_that_end_the_last_epoch_are_said_wherever_a_length_is(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 5.0}, keeps_weights=True, max_steps=80)
    page = Page(build_report(study.add("gn", None, {0: 1.0}, max_steps=90).write(tmp_path)))
    assert page.terms["Epochs"] == "3 epochs, to step 90"
    assert "norm batch 32, 3 epochs, to step 80, learning rate" in page.terms["Pre-training"]
    assert "1,078 training images, 3 epochs, to step 90" in page.text


def test_runs_from_two_machines_are_told(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.0, 2: 10.0})
    study.write(tmp_path)
    other = ENVIRONMENT.model_copy(update={"processor": "Another Processor"})
    write_record(tmp_path / "cells" / study.cells[1].cell_id / "environment.json", other)
    page = Page(build_report(tmp_path))
    assert "The runs were made in 2 environments." in page.text
    assert [row["Environment"] for row in page.table("Arm", "Seed")] == ["1", "2", "1"]
    assert "Some Processor (AVX512) (2 runs)" in page.terms["Environment"]
    assert "Another Processor (AVX512) (1 run)" in page.terms["Environment"]
    assert "torch 2.14.1, torchvision 0.29.1, NumPy 2.4.6" in page.terms["Environment"]


def test_a_study_that_has_not_started_has_no_environment(tmp_path: Path) -> None:
    page = Page(build_report(SampleStudy().add("bn", 32, {0: "missing"}).write(tmp_path)))
    assert page.terms["Environment"] == "not recorded: no run has started"
    assert "environments." not in page.text
