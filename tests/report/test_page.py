"""The page: what it says, that it loads nothing, and that text from outside stays text."""

from __future__ import annotations

import math
from pathlib import Path

from batchfree.records import Comparison, Cost
from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import SampleStudy, ragged_study, whole_study

ATTACK = "<script>alert('x')</script>\"'&{{ 7 * 7 }}"


def page_of(study: SampleStudy, out: Path) -> Page:
    return Page(build_report(study.write(out)))


def test_advice_stands_on_top_in_two_sentences(whole_page: Page) -> None:
    assert len(whole_page.advice) == 2
    assert whole_page.advice[1].startswith("Use Group Norm (GN) at norm batch 2")
    assert whole_page.text.index(whole_page.advice[0]) < whole_page.text.index("In colour: every point")


def test_the_rule_and_the_limits_of_the_advice_are_stated(whole_page: Page) -> None:
    text = whole_page.text
    assert "Where at least one arm that lost no run is resolved better than Batch Norm" in text
    assert "it does not carry over to other networks, data or schedules" in text
    assert "“Best” is optimistic" in text


def test_table_of_differences_shows_hand_worked_numbers(whole_page: Page) -> None:
    rows = whole_page.table("Reference", "Arm")
    # At 2, GN: -3.1, -2.9, -2.9, mean -2.967, deviation 0.1155, half width 4.30265 * 0.1155 / sqrt(3) = 0.287.
    # t = 44.5 with 2 degrees of freedom: p = 0.0005. LN - BN at 32: 2.0, 2.1, 2.0, t = 61, p = 0.00027 is the smallest
    # of four, so that of GN counts three times.
    assert {
        key: rows[2][key] for key in ("Reference", "Arm", "Verdict", "Mean difference", "p (Holm)", "Seed pairs")
    } == {
        "Reference": "BN, norm batch 2",
        "Arm": "GN",
        "Verdict": "▼ better",
        "Mean difference": "−2.97",
        "p (Holm)": "0.002",
        "Seed pairs": "3",
    }
    assert rows[2]["95 % interval"] == "−3.25 to −2.68"
    assert [(row["Reference"], row["Arm"], row["Verdict"]) for row in rows] == [
        ("BN, norm batch 32", "GN", "not resolved"),
        ("BN, norm batch 32", "LN", "▲ worse"),
        ("BN, norm batch 2", "GN", "▼ better"),
        ("BN, norm batch 2", "LN", "▼ better"),
    ]


def test_batch_norm_is_shown_against_itself(whole_page: Page) -> None:
    (row,) = whole_page.all_tables("Reference", "Arm")[1]
    assert (row["Reference"], row["Arm"]) == ("BN, norm batch 32", "BN, norm batch 2")
    assert (row["Verdict"], row["Mean difference"]) == ("▲ worse", "+3.00")
    assert row["95 % interval"] == "+2.75 to +3.25"


def test_the_page_says_that_verdicts_are_corrected_and_intervals_are_not(whole_page: Page) -> None:
    assert "4 tests, corrected together: the verdict goes by p (Holm)." in whole_page.text
    assert "One test: the verdict goes by p (Holm)." in whole_page.text
    assert "may leave 0 out where the verdict is “not resolved”" in whole_page.text


def test_lost_runs_are_noted_beside_the_differences_they_are_missing_from(ragged_page: Page) -> None:
    rows = ragged_page.table("Reference", "Arm")
    assert [row["Note"] for row in rows] == [
        "GN ended without a result in 1 more seed",
        "BN, norm batch 1 ended without a result in 1 more seed",
    ]
    assert [row["Verdict"] for row in rows] == ["not resolved", "too few seeds"]


def test_equal_pairs_are_explained(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 11.0}).add("gn", None, {0: 9.0, 1: 10.0})
    (row,) = page_of(study, tmp_path).table("Reference", "Arm")
    assert (row["Mean difference"], row["95 % interval"], row["Verdict"]) == ("−1.00", "none", "not resolved")
    assert row["Note"].startswith("every pair gives the same difference")


def test_mean_table_shows_mean_deviation_count_and_cost(ragged_page: Page) -> None:
    rows = [list(row.values())[:4] for row in ragged_page.table("Arm", "Mean error")]
    assert rows == [
        ["BN, norm batch 32", "10.1 %", "0.10", "3 of 3"],
        ["BN, norm batch 1", "30.0 %", "", "1 of 3"],
        ["GN", "10.2 %", "0.42", "2 of 3"],  # 9.9 and 10.5: deviation 0.6 / sqrt(2)
    ]


def cost(milliseconds: float, mebibytes: float) -> Cost:
    return Cost(seconds=9, training_seconds=milliseconds, steps=1000, peak_memory_bytes=int(mebibytes * 2**20))


def test_costs_are_told_beside_those_of_batch_norm_under_the_same_settings(tmp_path: Path) -> None:
    study = SampleStudy(axes=("model", "norm", "norm_batch"))
    for model, factor in (("resnet20", 1), ("resnet56", 3)):
        study.add("bn", 32, {0: 9.0}, model=model, cost=cost(10 * factor, 200 * factor), recomputed={0: 8.0})
        study.add("gn", None, {0: 9.0}, model=model, cost=cost(12 * factor, 300 * factor))
    header = page_of(study, tmp_path).tables[-2][0]
    rows = Page(tmp_path / "report.html").tables[-2][1:]
    assert header[4:] == ["ms per step", "to BN", "Peak MiB", "to BN"]
    assert [[row[0], *row[4:]] for row in rows] == [
        ["ResNet-20, BN, norm batch 32", "10.0", "× 1.00", "200", "× 1.00"],
        ["ResNet-20, BN, statistics recomputed, norm batch 32", "the same runs", "", "", ""],
        ["ResNet-20, GN", "12.0", "× 1.20", "300", "× 1.50"],
        ["ResNet-56, BN, norm batch 32", "30.0", "× 1.00", "600", "× 1.00"],
        ["ResNet-56, BN, statistics recomputed, norm batch 32", "the same runs", "", "", ""],
        ["ResNet-56, GN", "36.0", "× 1.20", "900", "× 1.50"],
    ]


def test_recomputed_statistics_are_explained_where_there_are_any(tmp_path: Path, whole_page: Page) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.5}, recomputed={0: 9.0, 1: 9.25}).add("gn", None, {0: 9.0})
    page = page_of(study, tmp_path)
    assert "the same training, evaluated once more with" in page.text
    assert [row["Recomputed"] for row in page.table("Arm", "Seed")] == ["9.00", "9.25", ""]
    assert "evaluated once more" not in whole_page.text
    assert "Recomputed" not in whole_page.table("Arm", "Seed")[0]


def test_table_of_runs_has_every_cell_with_its_reason(ragged_page: Page) -> None:
    rows = ragged_page.table("Arm", "Seed")
    assert len(rows) == 9
    assert list(rows[0].values()) == [
        *["BN, norm batch 32", "0", "done", "10.00", "10.12", "9.75", "0.250", "12.5", "100.0", "1.0", "32", ""]
    ]
    by_status = {row["Status"]: row for row in rows}
    # Where a run has no numbers, its reason spans their columns.
    assert list(by_status["diverged"].values())[3:8] == ["loss is nan at step 3", "", "", "", "12.5"]
    assert list(by_status["failed"].values())[3:8] == ["killed by signal 9", "", "", "", "12.5"]
    assert list(by_status["missing"].values())[3:8] == ["", "", "", "", ""]
    assert rows[6]["Arm"] == "GN"
    assert rows[6]["Groups"] == "1/2/4"


def test_what_is_missing_is_counted_on_top(ragged_page: Page) -> None:
    text = ragged_page.text
    assert "6 of 9 runs finished" in text
    assert "1 of 9 runs has no result yet" in text
    assert "Without a result: 1 run diverged and 1 run failed" in text
    assert "One seed only" not in text


def test_a_whole_study_has_no_such_notice(whole_page: Page) -> None:
    text = whole_page.text
    assert "12 of 12 runs finished" in text
    assert "no result yet" not in text
    assert "Without a result" not in text


def test_one_seed_is_told_and_gets_no_interval(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}).add("bn", 2, {0: 13.0}).add("gn", None, {0: 9.0})
    page = page_of(study, tmp_path)
    assert "One seed only" in page.text
    assert {row["95 % interval"] for row in page.table("Reference", "Arm")} == {"none"}
    assert "corrected together:" not in page.text


def test_a_comparison_without_a_reference_says_so(tmp_path: Path) -> None:
    page = page_of(SampleStudy().add("gn", None, {0: 9.0, 1: 9.5}), tmp_path)
    assert "(the reference is norm = bn), so there is nothing to compare." in page.text


def test_a_norm_batch_that_changes_the_sgd_batch_is_shown_with_its_own_caption(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper").add("bn", 32, {0: 10.0, 1: 10.5}).add("bn", 2, {0: 13.0, 1: 13.5})
    page = page_of(study.add("gn", 32, {0: 9.0, 1: 9.6}).add("gn", 2, {0: 9.0, 1: 9.6}), tmp_path)
    assert "The norm batch changes the SGD batch and learning rate too, so a change along the axis" in page.captions[0]
    assert [row["SGD batch"] for row in page.table("Arm", "Seed")] == ["256"] * 2 + ["16"] * 2 + ["256"] * 2 + [
        "16"
    ] * 2


def test_other_studies_say_what_is_resolved_and_what_is_not(tmp_path: Path) -> None:
    study = SampleStudy(name="mine", figure="bars", axes=("norm",)).add("bn", 32, {0: 10.0, 1: 10.2, 2: 10.1})
    study.add("gn", None, {0: 12.0, 1: 12.3, 2: 12.1}).add("ln", None, {0: 9.7, 1: 10.5, 2: 10.2})
    page = page_of(study.add("in", None, {0: 9.0}), tmp_path)
    assert page.advice == [
        "1 of 3 seed-paired comparisons is resolved: GN is 2.03 points worse than BN.",
        "Of the others, 1 is not resolved, which does not mean that the arms are equal.",
        "1 comparison has fewer than two seeds that both arms finished.",
    ]
    assert "What is resolved" in [text for _, text in page.headings]
    assert "The rule behind it" not in page.text


def test_odd_numbers_are_shown_as_they_are(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 1e308, 1: math.nan, 2: 10.0})
    cell_id = study.cells[2].cell_id
    study.results[cell_id] = study.results[cell_id].model_copy(update={"validation_loss": 1e30})
    rows = page_of(study, tmp_path).table("Arm", "Seed")
    assert [row["Error"] for row in rows] == ["1e+308", "nan", "10.00"]
    assert rows[2]["Loss"] == "1e+30"


def test_every_run_has_its_own_command(ragged_page: Page) -> None:
    for cell in ragged_study().cells:
        assert cell.command(f"cells-alone/{cell.cell_id}") in ragged_page.text


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    study = SampleStudy(
        data=f"/data/{ATTACK}",
        name=f"name {ATTACK}",
        title=f"title {ATTACK}",
        figure="bars",
        axes=("model", "norm"),
        compare=(Comparison(title=f"compare {ATTACK}", reference={"norm": "bn"}),),
    )
    study.add("bn", 32, {0: 10.0, 1: f"failed: {ATTACK}"}, model=f"m {ATTACK}").add("gn", None, {0: 9.0}, model=ATTACK)
    study.write(tmp_path / "a")
    for page in (
        Page(build_report(tmp_path / "a")),
        Page(build_report(tmp_path / "a", whole_study().write(tmp_path / "b"), to=tmp_path / "r")),
    ):
        assert "script" not in {tag for tag, _ in page.tags}
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        runs = page.table("Arm", "Seed")
        assert (runs[1]["Error"], runs[0]["Arm"]) == (ATTACK, f"m {ATTACK}, BN")
        assert page.terms["Data"].startswith(f"/data/{ATTACK}")
        assert f"--data /data/{ATTACK}" in page.text
        headings = [text for _, text in page.headings]
        assert {f"title {ATTACK}", f"compare {ATTACK}"} <= set(headings)
        assert "<script" not in page.images[0][1]


def test_page_refers_to_nothing_outside_itself(ragged_page: Page) -> None:
    assert len(ragged_page.loaded) >= 5
    for address in ragged_page.loaded:
        assert address.startswith(("data:", "#")), address[:80]
    assert not {"script", "iframe", "object", "embed", "video", "audio", "form"} & {tag for tag, _ in ragged_page.tags}


def test_figures_are_inside_the_page_with_numbers_in_their_alternative_text(ragged_page: Page) -> None:
    (error_alt, error_svg), (curve_alt, curve_svg) = ragged_page.images
    figures = ragged_page.path.parent / "figures"
    assert error_svg == (figures / "error-vs-norm-batch.svg").read_text()
    assert curve_svg == (figures / "validation-curves.svg").read_text()
    assert "BN 10.1\u00a0% at 32, 30.0\u00a0% at 1; GN 10.2\u00a0% at any norm batch" in error_alt
    assert "on different data, Wu & He 2018 (arXiv 1803.08494v3), Table 2: BN 23.6\u00a0% at 32" in error_alt
    assert "norm batch 1: BN 30.0\u00a0%, GN 10.2\u00a0%" in curve_alt


def test_published_numbers_stand_as_printed_with_source_and_different_data(whole_page: Page) -> None:
    assert whole_page.table("Norm batch: images per GPU", "32")[0] == {
        "Norm batch: images per GPU": "BN", "32": "23.6", "16": "23.7", "8": "24.8", "4": "27.3", "2": "34.7",
    }  # fmt: skip
    assert "Different data. Wu & He 2018 (arXiv 1803.08494v3), Table 2: ResNet-50 on ImageNet" in whole_page.text
