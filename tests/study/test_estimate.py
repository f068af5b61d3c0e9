from __future__ import annotations

from pathlib import Path

from batchfree.study import Study, estimate_study, load_study, run_study
from tests.study.quick import quick_fine_tuning


def test_an_estimate_counts_what_is_missing_and_writes_nothing(quick: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    estimate = estimate_study(quick, out)
    assert [(arm.label, arm.runs, arm.missing) for arm in estimate.arms] == [
        ("norm=bn, norm_batch=32", 1, 1),
        ("norm=bn, norm_batch=2", 1, 1),
        ("norm=gn", 1, 1),
    ]
    assert estimate.seconds > 3 * 5  # each run imports torch and reads its data
    assert not out.exists()
    run_study(quick, out)
    done = estimate_study(quick, out)
    assert (done.runs, done.missing, done.seconds) == (3, 0, 0)


def test_an_estimate_says_which_arms_are_skipped() -> None:
    overrides = {"model": "torchvision:resnet18", "norm": ["bn", "gn"], "norm_batch": [2, 1], "seeds": 1}
    study = load_study("norm-batch", overrides={**overrides, "sgd_batch": 2, "train_images": 16})
    arms = {arm.label: arm for arm in estimate_study(study, Path("nowhere")).arms}
    skipped = arms["norm=bn, norm_batch=1"]
    assert "one value per channel has no variance" in skipped.note
    assert (skipped.missing, skipped.seconds_per_run) == (0, None)
    assert (arms["norm=gn"].seconds_per_run is not None, arms["norm=gn"].note) == (True, "")


def test_an_estimate_says_what_it_leaves_out() -> None:
    study = quick_fine_tuning(norm="gn", start=["copied", "calibrated", "recovered"])
    notes = [arm.note for arm in estimate_study(study, Path("nowhere")).arms]
    assert notes == ["", "", "and its calibration", "and its calibration and recovery"]
