"""The names users build on. A change here is a change for them: say so in the changelog."""

from __future__ import annotations

import importlib
import inspect

import pytest

SURFACE = {
    "batchfree": {"BatchfreeError", "__version__"},
    "batchfree.torch": {
        "Activation", "GroupNorm", "KernelInfo", "Moments", "WSConv1d", "WSConv2d", "WSConv3d", "apply_moments", "fold",
        "group_norm", "kernel_info", "merge_moments", "moments", "standardize_weight",
    },
    "batchfree.convert": {
        "Affine", "CalibrationReport", "CalibrationRow", "Choice", "ConversionPlan", "Eps", "Groups", "Norm", "PlanRow",
        "RecoveryReport", "Trained", "Ws", "calibrate", "convert", "plan_conversion", "recover", "standardize_weights",
    },
    "batchfree.images": {"IMAGE_SUFFIXES", "image_area", "read_image"},
    "batchfree.weights": {"misfit", "read_safetensors", "shortened"},
    "batchfree.records": {
        "BATCH_FREE_NORMS", "CellConfig", "CellRecord", "CellResult", "Comparison", "Cost", "Environment",
        "EpochMetrics", "FigureKind", "Half", "NORMS", "Norm", "RETRIED", "Record", "ReportSpec",
        "SCHEMA_VERSION", "STARTS", "Start", "Status", "StudyRecord", "last_epochs", "read_cell",
        "read_metrics", "read_record", "read_study", "summarise", "write_atomically", "write_record",
    },
    "batchfree.report": {
        "Advice", "Arm", "Arms", "Choice", "Difference", "Exhibit", "PublishedSeries", "advise", "build_report",
        "compare", "gather_arms", "holm", "paired_p_value", "published_exhibits", "results_csv", "student_interval",
    },
    "batchfree.export": {"FORMATS", "Format", "export"},
    "batchfree.study": {
        "ArmSettings", "DATA_SETS", "Engine", "Limits", "LocalEngine", "MODELS", "MemoryNeed", "PARENT_VARIABLE",
        "Plan", "Progress", "RayEngine", "STUDIES", "SlurmEngine", "Study", "StudyEstimate", "estimate_study",
        "is_parent_gone", "limit_memory", "load_study", "measure_memory", "plan_study", "retry_study", "run_cell",
        "run_study", "size_bytes", "study_text",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SURFACE)
def test_public_names_are_these(name: str) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) == SURFACE[name]


@pytest.mark.parametrize("name", [*SURFACE, "batchfree.errors", "batchfree.groups", "batchfree.reference"])
def test_public_functions_and_classes_say_what_they_do(name: str) -> None:
    module = importlib.import_module(name)
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


def test_argument_names_and_order_are_torchs() -> None:
    import torch

    from batchfree.torch import GroupNorm, WSConv2d, group_norm

    ours = list(inspect.signature(group_norm).parameters)
    theirs = list(inspect.signature(torch.nn.functional.group_norm).parameters)
    assert ours[: len(theirs)] == theirs
    for own, plain in ((GroupNorm, torch.nn.GroupNorm), (WSConv2d, torch.nn.Conv2d)):
        positional = [
            (name, parameter.default)
            for name, parameter in inspect.signature(own).parameters.items()
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        expected = [
            (name, parameter.default)
            for name, parameter in inspect.signature(plain).parameters.items()
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        assert positional == expected
