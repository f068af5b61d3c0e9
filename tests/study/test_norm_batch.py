from __future__ import annotations

from typing import Any

import pytest
import torch

from batchfree.errors import BatchfreeError, ConversionError, StudyError
from batchfree.study import NormBatchSettings
from batchfree.study._data import ImageData


def test_batch_free_arms_run_once_per_seed(digits: ImageData) -> None:
    cells = NormBatchSettings(norm_batch=(32, 2), seeds=2).cells(digits)
    arms = [(cell.norm, cell.norm_batch, cell.seed) for cell in cells]
    assert arms == [
        *(("bn", norm_batch, seed) for norm_batch in (32, 2) for seed in (0, 1)),
        *((norm, None, seed) for norm in ("gn", "gn+ws", "ln", "in") for seed in (0, 1)),
    ]
    assert {(cell.sgd_batch, cell.learning_rate, cell.schedule) for cell in cells} == {(32, 0.1, "cosine")}
    assert len({cell.cell_id for cell in cells}) == len(cells)


def test_the_papers_protocol_ties_sgd_batch_and_learning_rate_to_the_norm_batch(digits: ImageData) -> None:
    cells = NormBatchSettings(norms=("bn", "gn"), norm_batch=(16, 2), seeds=1, protocol="paper").cells(digits)
    assert [(cell.norm, cell.norm_batch, cell.sgd_batch) for cell in cells] == [
        ("bn", 16, 128),
        ("bn", 2, 16),
        ("gn", 16, 128),
        ("gn", 2, 16),
    ]
    assert [cell.learning_rate for cell in cells] == pytest.approx([0.05, 0.00625, 0.05, 0.00625])
    assert {cell.schedule for cell in cells} == {"step"}


def test_the_data_set_is_part_of_what_a_cell_is_and_its_place_is_not(digits: ImageData) -> None:
    settings = NormBatchSettings(norms=("gn",), seeds=1)
    (cell,) = settings.cells(digits)
    assert settings.cells(digits.take(100))[0].cell_id != cell.cell_id
    assert cell.model_copy(update={"data_dir": "/elsewhere"}).cell_id == cell.cell_id
    assert cell.model_copy(update={"threads": 2}).cell_id != cell.cell_id


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"norms": ("bn", "gm")}, "Did you mean gn"),
        ({"model": "resnet9"}, "Did you mean resnet8"),
        ({"protocol": "papper"}, "Did you mean paper"),
        ({"norm_batch": (32, 5)}, "norm batch 5 does not divide the SGD batch of 32.* 1, 2, 4, 8, 16, 32"),
        ({"norm_batch": (64,), "sgd_batch": 32}, "norm batch 64 does not divide"),
        ({"norm_batch": ()}, "at least one"),
        ({"norm_batch": (2, 2)}, "each once"),
        ({"norms": ()}, "at least one"),
        ({"norm_batch": (0,)}, "above 0"),
        ({"seeds": 0}, "--seeds 0"),
        ({"epochs": -1}, "--epochs -1"),
        ({"threads": 0}, "--threads 0"),
        ({"learning_rate": 0.0}, "--lr 0"),
        ({"learning_rate": float("nan")}, "--lr nan"),
        ({"learning_rate": float("inf")}, "--lr inf"),
        ({"image_size": -1}, "--image-size -1"),
        ({"train_images": 0}, "--train-images 0"),
        ({"sgd_batch": 256, "norm_batch": (32,)}, "more than the 160 training images"),
        ({"protocol": "paper", "sgd_batch": 32}, "ties both to the norm batch"),
        ({"protocol": "paper", "learning_rate": 0.1}, "ties both to the norm batch"),
    ],
)
def test_a_bad_setting_is_refused_before_any_work(settings: dict[str, Any], pattern: str, digits: ImageData) -> None:
    with pytest.raises(StudyError, match=pattern):
        NormBatchSettings(**settings).cells(digits)


def test_what_only_the_networks_can_tell_is_refused_before_any_work_too(digits: ImageData) -> None:
    with pytest.raises(ConversionError, match="do not split into 5 equal groups"):
        NormBatchSettings(groups=5).cells(digits)
    tiny = ImageData(
        torch.zeros(64, 1, 4, 4, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64),
        torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), ("a", "b"),
    )  # fmt: skip
    with pytest.raises(StudyError, match=r"Leave 1 out of --norm-batch"):
        NormBatchSettings(norms=("bn",), norm_batch=(2, 1)).cells(tiny)
    with pytest.raises(BatchfreeError, match="one value per sample"):
        NormBatchSettings(norms=("in",)).cells(tiny)
