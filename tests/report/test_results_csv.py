"""results.csv, character by character."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from batchfree.report import results_csv
from tests.report.sample_study import SampleStudy

HEADER = (
    "study,cell_id,model,norm,norm_batch,sgd_batch,groups,channels_per_group,zero_gamma,optimizer,learning_rate,"
    "epochs,train_images,seed,threads,status,error_percent,final_error_percent,"
    "best_error_percent,recomputed_error_percent,validation_loss,groups_used,seconds,seconds_per_step,peak_memory_bytes,"
    "start,pretraining,keeps_weights,half,rotation,initial_error_percent,max_steps,mixup,stored_size\n"
)


def table(study: SampleStudy, out: Path) -> str:
    return results_csv({"norm-batch": study.read(out)[1]})


def test_a_row_per_cell_with_empty_fields_where_there_is_no_value(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 10.5, 1: "diverged: loss is nan", 2: "missing"}, recomputed={0: 8.5})
    study.add("gn+ws", None, {0: 9.0, 1: "failed: killed, by signal 9\nlast line"}, groups=16, zero_gamma=True)
    ids = [cell.cell_id for cell in study.cells]
    shared, new = "sgd,0.1,3,1078", "scratch,,False,,0.0,,,0.0,"
    assert table(study, tmp_path) == HEADER + (
        f"norm-batch,{ids[0]},resnet8,bn,8,32,auto,,,{shared},0,1,done,10.5,10.625,10.25,8.5,0.25,,12.5,0.1,1048576,{new}\n"
        f"norm-batch,{ids[1]},resnet8,bn,8,32,auto,,,{shared},1,1,diverged,,,,,,,12.5,0.1,1048576,{new}\n"
        f"norm-batch,{ids[2]},resnet8,bn,8,32,auto,,,{shared},2,1,missing,,,,,,,,,,{new}\n"
        f"norm-batch,{ids[3]},resnet8,gn+ws,,32,16,,True,{shared},0,1,done,9.0,9.125,8.75,,0.25,1/2/4,12.5,0.1,1048576,{new}\n"
        f"norm-batch,{ids[4]},resnet8,gn+ws,,32,16,,True,{shared},1,1,failed,,,,,,,12.5,0.1,1048576,{new}\n"
    )


def test_a_cropped_and_blended_run_says_so(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"stored_size": 160, "image_size": 128, "augment": "crop-flip", "mixup": 0.1}
    study = SampleStudy().add("gn", None, {0: 9.0}, **fields, max_steps=90)
    assert table(study, tmp_path).endswith(",scratch,,False,,0.0,,90,0.1,160\n")


def test_a_fine_tuned_run_says_what_it_started_from(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"start": "copied", "pretraining": "bn-n32-s0-ab", "half": "second", "rotation": 30.0}
    study = SampleStudy().add("gn", None, {0: 9.0}, **fields)
    cell_id = study.cells[0].cell_id
    study.results[cell_id] = study.results[cell_id].model_copy(update={"initial_error_percent": 80.5})
    assert table(study, tmp_path).endswith(",1048576,copied,bn-n32-s0-ab,False,second,30.0,80.5,,0.0,\n")


def test_several_studies_stand_below_each_other_under_their_names(tmp_path: Path) -> None:
    first = SampleStudy().add("bn", 8, {0: 10.5}).read(tmp_path / "a")[1]
    second = SampleStudy().add("gn", None, {0: 9.0}).read(tmp_path / "b")[1]
    rows = list(csv.DictReader(io.StringIO(results_csv({"one": first, "two": second}))))
    assert [(row["study"], row["norm"]) for row in rows] == [("one", "bn"), ("two", "gn")]


def test_numbers_keep_every_digit_and_odd_ones_can_be_read_back(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 0.1 + 0.2, 1: 10.0, 2: 10.0})
    for seed, loss in ((0, 1e300), (1, math.nan), (2, math.inf)):
        cell_id = study.cells[seed].cell_id
        study.results[cell_id] = study.results[cell_id].model_copy(update={"validation_loss": loss})
    rows = list(csv.DictReader(io.StringIO(table(study, tmp_path))))
    assert float(rows[0]["error_percent"]) == 0.1 + 0.2
    assert float(rows[0]["validation_loss"]) == 1e300
    assert math.isnan(float(rows[1]["validation_loss"]))
    assert float(rows[2]["validation_loss"]) == math.inf


def test_groups_are_distinct_and_in_forward_order(tmp_path: Path) -> None:
    study = SampleStudy().add("gn", None, {0: 9.0})
    cell_id = study.cells[0].cell_id
    study.results[cell_id] = study.results[cell_id].model_copy(update={"num_groups": (4, 4, 2, 8, 2, 1)})
    (row,) = csv.DictReader(io.StringIO(table(study, tmp_path)))
    assert row["groups_used"] == "4/2/8/1"
