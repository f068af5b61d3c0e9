"""BiT's rule in a study: what it chooses for the data, and what wins over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from batchfree.cli._tables import print_plan
from batchfree.errors import StudyError
from batchfree.records import CellConfig
from batchfree.study import Study, load_study, study_text
from batchfree.study._data import ImageData
from batchfree.study._rule import by_rule


def fine_tuning(**overrides: Any) -> Study:
    settings = {"model": "resnet8", "train_images": 1000, "validation_images": 50, "seeds": 1, **overrides}
    return load_study("bit", protocol="fine-tune", overrides=settings)


def decided(**overrides: Any) -> CellConfig:
    study = fine_tuning(**overrides).decided()
    (cell,) = study.cells(study.load())
    return cell


@pytest.mark.parametrize(
    ("images", "side", "steps", "sizes", "mixup", "epochs"),
    # The paper's section 3.3; the epochs are the steps over the whole batches of 512 that the images make, rounded up.
    [
        (1_000, 32, 500, (160, 128), 0.0, 500),
        (3_680, 300, 500, (512, 480), 0.0, 72),
        (20_000, 95, 10_000, (160, 128), 0.1, 257),
        (500_000, 96, 20_000, (512, 480), 0.1, 21),
    ],
)
def test_the_rules_values_stand_in_the_cell(
    images: int, side: int, steps: int, sizes: tuple[int, int], mixup: float, epochs: int
) -> None:
    study = load_study("bit", protocol="fine-tune", overrides={"seeds": 1})
    arm, words = by_rule(study.arms[0], images, side * side, "bit")
    train, validation = torch.zeros(images, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    (cell,) = arm.cells("bit", "fine-tune", ImageData(train, train, validation, validation, ()), "f" * 64)
    assert (cell.max_steps, cell.total_steps, cell.epochs) == (steps, steps, epochs)
    assert (cell.stored_size, cell.image_size, cell.augment, cell.mixup) == (*sizes, "crop-flip", mixup)
    assert (cell.sgd_batch, cell.learning_rate, cell.schedule) == (512, 0.003, "bit")
    assert (cell.optimizer, cell.momentum, cell.weight_decay) == ("sgd", 0.9, 0.0)
    assert f"{images:,} training images of {side * side:,} pixels" in words
    assert f"max_steps = {steps}, stored_size = {sizes[0]}, image_size = {sizes[1]}" in words
    values = dict(word.split("=", 1) for word in cell.assignments())
    assert CellConfig.model_validate_strings(values) == cell


def test_the_rule_measures_the_data_itself(tmp_path: Path) -> None:
    digits = decided()
    assert (digits.max_steps, digits.stored_size, digits.image_size, digits.train_images) == (500, 160, 128, 1000)
    assert decided(train_images="default", half="first").epochs == 500  # 719 of 1438 images: one batch of 512
    for name, side in (("train/a", 100), ("train/b", 120), ("val/a", 20), ("val/b", 20)):
        (tmp_path / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / name / f"{index}.png")
    overrides = {"data": str(tmp_path), "train_images": "default", "validation_images": "default", "sgd_batch": 4}
    photos = fine_tuning(**overrides).decided()
    assert {(arm.stored_size, arm.image_size, arm.max_steps) for arm in photos.arms} == {(512, 480, 64_000)}


def test_another_sgd_batch_sees_as_many_images_at_a_rate_in_proportion() -> None:
    cell = decided(sgd_batch=64)
    assert cell.total_steps * cell.sgd_batch == 500 * 512
    assert cell.learning_rate == pytest.approx(0.003 / 8)
    assert decided(sgd_batch=100).total_steps == 2560


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ({"epochs": 3}, {"epochs": 3, "max_steps": None, "stored_size": 160, "learning_rate": 0.003}),
        ({"max_steps": 7}, {"epochs": 7, "max_steps": 7}),
        ({"learning_rate": 0.01, "sgd_batch": 100}, {"learning_rate": 0.01, "sgd_batch": 100, "max_steps": 2560}),
        ({"image_size": 24, "stored_size": 30}, {"image_size": 24, "stored_size": 30, "augment": "crop-flip"}),
        ({"mixup": 0.2, "weight_decay": 1e-4}, {"mixup": 0.2, "weight_decay": 1e-4}),
        ({"schedule": "cosine", "augment": "resized-crop"}, {"schedule": "cosine", "augment": "resized-crop"}),
    ],
)
def test_what_is_given_wins_over_the_rule(overrides: dict[str, Any], kept: dict[str, Any]) -> None:
    cell = decided(**overrides)
    assert {key: getattr(cell, key) for key in kept} == kept


def test_a_rule_replaces_what_stands_under_it_and_a_preset_is_laid_over_it() -> None:
    plain = {"data": "digits", "train_images": 1000, "model": "resnet8", "seeds": 1}
    small = load_study("bit", protocol="fine-tune", preset="small", overrides={**plain, "validation_images": 50})
    assert {(arm.epochs, arm.max_steps) for arm in small.decided().arms} == {(5, None)}
    without = load_study("bit", protocol="fine-tune", overrides={**plain, "rule": "default"})
    assert {(arm.rule, arm.epochs, arm.sgd_batch, arm.learning_rate) for arm in without.arms} == {(None, 15, 32, 0.1)}
    other = load_study("norms", overrides={**plain, "norm": ["gn"], "rule": "bit", "epochs": 2}).decided()
    assert {(arm.epochs, arm.sgd_batch, arm.image_size, arm.schedule) for arm in other.arms} == {(2, 512, 128, "bit")}


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        ({"image_size": 64}, 'image_size = 64 was given, and rule = "bit" gives both.*Pass stored_size and image_size'),
        ({"stored_size": 200}, "stored_size = 200 was given"),
        ({"augment": "none"}, 'rule = "bit": stored_size = 160 was given with augment = .none., which crops nothing'),
        ({"sgd_batch": 2000}, "more than the 1000 training images"),
        ({"rule": "bti"}, "Did you mean bit"),
        ({"rule": ["bit"]}, "A rule is for all runs of a study"),
        (
            {"learning_rate_scale": "sgd_batch"},
            'learning_rate_scale = "sgd_batch" was given.*Pass learning_rate too, or neither',
        ),
        ({"learning_rate_scale": "norm_batch", "norm_batch": 4}, 'learning_rate_scale = "norm_batch" was given'),
        ({"epochs": 3, "max_steps": 30}, "epochs = 3 and max_steps = 30 were given.*Leave one out"),
    ],
)
def test_what_contradicts_the_rule_is_refused(overrides: dict[str, Any], pattern: str) -> None:
    with pytest.raises(StudyError, match=pattern):
        decided(**overrides)


def test_a_rule_of_an_arm_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(study_text("norms").replace("[[arms]]\n", '[[arms]]\nrule = "bit"\n'))
    with pytest.raises(StudyError, match=r"A rule is for all runs.*in \[settings\]"):
        load_study(path)


def test_a_size_of_a_preset_is_taken_away_as_the_refusal_says() -> None:
    def paper(**overrides: Any) -> Study:
        given = {"data": "digits", "model": "resnet8", **overrides}
        return load_study("bit", protocol="fine-tune", preset="paper", overrides=given).decided()

    with pytest.raises(StudyError, match=r"image_size = 224 was given.* --set image_size=default"):
        paper()
    (arm,) = paper(image_size="default").arms
    assert (arm.stored_size, arm.image_size, arm.sgd_batch) == (160, 128, 4096)


def test_a_scale_of_a_preset_is_taken_away_as_the_refusal_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(study_text("bit") + '\n[presets.mine]\nlearning_rate_scale = "sgd_batch"\n')
    with pytest.raises(StudyError, match=" --set learning_rate_scale=default"):
        load_study(path, protocol="fine-tune", preset="mine").decided()
    given = {"learning_rate_scale": "default", "sgd_batch": 64}
    (arm,) = load_study(path, protocol="fine-tune", preset="mine", overrides=given).decided().arms
    (cell, *_) = arm.cells("mine", "fine-tune", arm.load(), "f" * 64)
    assert cell.learning_rate == pytest.approx(0.003 / 8)


def test_a_scale_beside_a_rate_of_its_own_scales_it_once() -> None:
    scaled = {"learning_rate": 0.02, "learning_rate_scale": "sgd_batch"}
    assert decided(**scaled, sgd_batch=64).learning_rate == pytest.approx(0.04)
    assert decided(learning_rate_scale="none", sgd_batch=64).learning_rate == pytest.approx(0.003 / 8)


def test_a_rule_beside_a_pre_training_is_refused() -> None:
    with pytest.raises(StudyError, match=r'rule = "bit" was given beside \[pretraining\].*Leave the rule out'):
        load_study("fine-tune", overrides={"rule": "bit"})
    from_scratch = load_study("fine-tune", overrides={"rule": "bit", "start": "scratch"}).decided()
    assert (from_scratch.pretraining, {arm.max_steps for arm in from_scratch.arms}) == (None, {500})


def test_norm_batches_make_the_sgd_batch_and_the_rules_is_not_named() -> None:
    study = fine_tuning(norm_batch=8, norm_batches_per_step=16).decided()
    (cell,) = study.cells(study.load())
    assert (cell.sgd_batch, cell.total_steps) == (128, 2000)
    assert cell.learning_rate == pytest.approx(0.003 / 4)
    (words,) = study.chosen
    assert "sgd_batch" not in words
    assert "given: norm_batch = 8, norm_batches_per_step = 16" in words


def test_a_study_says_what_its_rule_chose_and_is_decided_once() -> None:
    study = fine_tuning(sgd_batch=4, image_size=8, stored_size=10).decided()
    (words,) = study.chosen
    assert "mixup = 0.0; given: sgd_batch = 4, stored_size = 10, image_size = 8" in words
    assert "Without --weights it trains from scratch" in words
    assert study.decided() is study
    without = load_study("bit", overrides={"train_images": 64, "seeds": 1})
    assert without.decided() is without


def test_images_are_read_for_a_decided_study_alone() -> None:
    with pytest.raises(StudyError, match=r'rule = "bit" is not decided yet.*Call study.decided\(\) first'):
        fine_tuning().load()


def test_the_choice_is_printed_before_the_steps_are_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    study = fine_tuning(sgd_batch=2000)  # refused once the images are loaded
    with pytest.raises(StudyError, match="more than the 1000 training images"):
        print_plan(study, tmp_path, jobs=None, download=False)
    assert "images of 64 pixels (height times width): " in capsys.readouterr().out
    print_plan(fine_tuning(sgd_batch=4, image_size=8, stored_size=10), tmp_path, jobs=1, download=False)
    assert capsys.readouterr().out.count('rule = "bit"') == 1
