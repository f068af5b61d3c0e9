"""results.csv, character by character."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from batchfree.report import results_csv
from tests.report.sample_study import SampleStudy

HEADER = "study,norm,norm_batch,sgd_batch,groups,seed,status,error_percent,final,best,loss,seconds,threads\n"


def test_a_row_per_cell_with_empty_fields_where_there_is_no_value(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 10.5, 1: "diverged: loss is nan", 2: "missing"})
    study.add("gn+ws", None, {0: 9.0, 1: "failed: killed, by signal 9\nlast line"})
    assert results_csv(study.read(tmp_path)) == HEADER + (
        "norm-batch,bn,8,32,,0,done,10.5,10.625,10.25,0.25,12.5,1\n"
        "norm-batch,bn,8,32,,1,diverged,,,,,12.5,1\n"
        "norm-batch,bn,8,32,,2,missing,,,,,,1\n"
        "norm-batch,gn+ws,,32,1/2/4,0,done,9.0,9.125,8.75,0.25,12.5,1\n"
        "norm-batch,gn+ws,,32,,1,failed,,,,,12.5,1\n"
    )


def test_protocol_paper_gives_every_row_its_norm_batch_and_sgd_batch(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper").add("bn", 4, {0: 10.5}).add("gn", 4, {0: 9.0})
    rows = list(csv.DictReader(io.StringIO(results_csv(study.read(tmp_path)))))
    assert [(row["norm_batch"], row["sgd_batch"]) for row in rows] == [("4", "32"), ("4", "32")]


def test_numbers_keep_every_digit_and_odd_ones_can_be_read_back(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 0.1 + 0.2, 1: 10.0, 2: 10.0})
    for seed, loss in ((0, 1e300), (1, math.nan), (2, math.inf)):
        cell_id = study.cells[seed].cell_id
        study.results[cell_id] = study.results[cell_id].model_copy(update={"validation_loss": loss})
    rows = list(csv.DictReader(io.StringIO(results_csv(study.read(tmp_path)))))
    assert float(rows[0]["error_percent"]) == 0.1 + 0.2
    assert float(rows[0]["loss"]) == 1e300
    assert math.isnan(float(rows[1]["loss"]))
    assert float(rows[2]["loss"]) == math.inf


def test_groups_are_distinct_and_in_forward_order(tmp_path: Path) -> None:
    study = SampleStudy().add("gn", None, {0: 9.0})
    cell_id = study.cells[0].cell_id
    study.results[cell_id] = study.results[cell_id].model_copy(update={"num_groups": (4, 4, 2, 8, 2, 1)})
    (row,) = csv.DictReader(io.StringIO(results_csv(study.read(tmp_path))))
    assert row["groups"] == "4/2/8/1"
