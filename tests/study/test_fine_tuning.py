"""What a run that starts from a trained network starts from, checked against the same steps done by hand."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from batchfree.convert import calibrate, convert, recover
from batchfree.errors import StudyError
from batchfree.records import CellConfig, Start, read_cell
from batchfree.study import _arm, run_cell
from batchfree.study._arm import build_network
from batchfree.study._data import ImageData, load_data
from batchfree.study._small_resnet import SmallResNet
from batchfree.torch import GroupNorm
from tests.study.quick import cells_of, quick_fine_tuning, stop_after

GROUP_NORM_STARTS: tuple[Start, ...] = ("fresh", "copied", "calibrated", "recovered")


def quick_cells() -> list[CellConfig]:
    """The pre-training, then every arm at norm batch 2."""
    return list(cells_of(quick_fine_tuning()))


def turned_digits() -> ImageData:
    return load_data("digits").take(160, half="second").rotated(30.0)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CellConfig]]:
    """A folder in which the pre-training is done, and the configurations of all arms."""
    folder, found = tmp_path_factory.mktemp("cells"), quick_cells()
    run_cell(found[0], folder / found[0].cell_id)
    return folder, found


def arm(cells: Sequence[CellConfig], norm: str, start: Start) -> CellConfig:
    return next(cell for cell in cells[1:] if (cell.norm, cell.start) == (norm, start))


def trained_state(folder: Path, found: Sequence[CellConfig]) -> dict[str, Tensor]:
    return load_file(folder / found[0].cell_id / "weights.safetensors")


def standardised(images: Tensor, data: ImageData) -> Tensor:
    pixels = data.train_images.double()
    mean, deviation = (statistic.float() for statistic in (pixels.mean(), pixels.std(correction=0)))
    return (images - mean) / deviation


def by_hand(state: dict[str, Tensor], start: Start, data: ImageData) -> nn.Module:
    """The network that a user would make of the trained one."""
    original = SmallResNet(8, 1, 10)
    original.load_state_dict(state)
    example = torch.zeros(1, 1, 8, 8)
    converted = convert(original, affine="fresh" if start == "fresh" else "keep", example_inputs=example)
    images = standardised(data.train_images, data)
    if start in ("calibrated", "recovered"):
        calibrate(converted, original, images[:64], groups="auto", eps="auto", filters="auto")
    if start == "recovered":
        recover(converted, original, images, seed=0)
    return converted


@pytest.mark.parametrize("start", GROUP_NORM_STARTS)
def test_a_network_starts_as_convert_calibrate_and_recover_give_it(
    start: Start, cells: tuple[Path, list[CellConfig]]
) -> None:
    folder, found = cells
    state, data = trained_state(folder, found), turned_digits()
    expected = by_hand(state, start, data)
    network = build_network(arm(found, "gn", start), data, state)
    norms, wanted_norms = ([m for m in one.modules() if isinstance(m, GroupNorm)] for one in (network, expected))
    assert [norm.num_groups for norm in norms] == [norm.num_groups for norm in wanted_norms]
    assert [norm.eps for norm in norms] == pytest.approx([norm.eps for norm in wanted_norms], rel=1e-4)
    for name, wanted in expected.state_dict().items():
        assert torch.allclose(network.state_dict()[name], wanted, rtol=1e-4, atol=1e-5), name
        is_scaled = start in ("calibrated", "recovered") and "classifier" not in name
        if "norm" not in name and not is_scaled:  # the trained ones
            assert torch.equal(network.state_dict()[name], state[name]), name


def test_the_starts_differ_in_their_norms(cells: tuple[Path, list[CellConfig]]) -> None:
    folder, found = cells
    state, data = trained_state(folder, found), turned_digits()
    weights = [
        build_network(arm(found, "gn", start), data, state).state_dict()["norm.weight"] for start in GROUP_NORM_STARTS
    ]
    assert torch.equal(weights[0], torch.ones(16))
    assert torch.equal(weights[1], state["norm.weight"])
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(weights))


@pytest.mark.parametrize(("norm", "start"), [("bn", "trained"), ("gn", "copied")])
def test_the_error_before_the_first_step_is_that_of_the_network_it_starts_from(
    norm: str, start: Start, cells: tuple[Path, list[CellConfig]], tmp_path: Path
) -> None:
    folder, found = cells
    config, data = arm(found, norm, start), turned_digits()
    result = run_cell(config, folder / config.cell_id)
    record = read_cell(folder / config.cell_id)
    network = SmallResNet(8, 1, 10)
    network.load_state_dict(trained_state(folder, found))
    start_network = (network if norm == "bn" else convert(network, example_inputs=torch.zeros(1, 1, 8, 8))).eval()
    scores = start_network(standardised(data.validation_images, data))
    wrong = (scores.argmax(1) != data.validation_labels).double().mean().item()
    assert [(metrics.epoch, metrics.train_loss is None) for metrics in record.metrics] == [(0, True), (1, False)]
    assert record.metrics[0].error_percent == pytest.approx(100 * wrong)
    assert result is not None
    assert result.initial_error_percent == record.metrics[0].error_percent
    assert result.error_percent == record.metrics[1].error_percent  # epoch 0 is in no median


def final_state(config: CellConfig, folder: Path) -> dict[str, Tensor]:
    keeping = config.model_copy(update={"keeps_weights": True})
    run_cell(keeping, folder / keeping.cell_id)
    return load_file(folder / keeping.cell_id / "weights.safetensors")


def test_frozen_batch_norm_stays_as_it_was_trained_and_batch_norm_does_not(
    cells: tuple[Path, list[CellConfig]],
) -> None:
    folder, found = cells
    before = trained_state(folder, found)
    norms = {name for name in before if "norm" in name}
    assert len(norms) == 7 * 5  # weight, bias, mean, variance and a count each
    for norm in ("bn-frozen", "bn"):
        after = final_state(arm(found, norm, "trained"), folder)
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert same == (norms if norm == "bn-frozen" else set())


@pytest.mark.parametrize("steps", [1, 4])
def test_a_recovered_run_stopped_anywhere_ends_with_the_same_bytes(
    steps: int, cells: tuple[Path, list[CellConfig]], tmp_path: Path
) -> None:
    folder, found = cells
    config = arm(found, "gn", "recovered")
    run_cell(config, folder / "whole")
    assert run_cell(config, folder / f"stopped-{steps}", stop_after(steps)) is None
    run_cell(config, folder / f"stopped-{steps}")
    for name in ("result.json", "metrics.jsonl", "config.json"):
        assert (folder / f"stopped-{steps}" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_the_fit_is_made_on_the_runs_device(
    cells: tuple[Path, list[CellConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's `meta`, which is everywhere and computes nothing: what the fit is given is looked at."""
    folder, found = cells
    config = arm(found, "gn", "recovered").model_copy(update={"device": "meta"})
    seen = []

    def look(converted: nn.Module, original: nn.Module, images: Tensor, **settings: object) -> None:
        tensors = (*converted.state_dict().values(), *original.state_dict().values(), images)
        seen.append({tensor.device.type for tensor in tensors})

    monkeypatch.setattr(_arm, "calibrate", look)
    monkeypatch.setattr(_arm, "recover", look)
    build_network(config, turned_digits(), trained_state(folder, found))
    assert seen == [{"meta"}, {"meta"}]


def test_the_fit_counts_in_the_seconds_and_not_in_the_peak(
    cells: tuple[Path, list[CellConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = cells
    clock, late = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])

    def fit_at_length(*arguments: object) -> None:
        late[0] += 1e6
        passing = bytearray(512 << 20)
        passing[::4096] = b"x" * len(passing[::4096])

    monkeypatch.setattr(_arm, "_fit", fit_at_length)
    run_cell(arm(found, "gn", "calibrated"), folder / "costly")
    cost = read_cell(folder / "costly").cost
    assert cost is not None
    assert cost.training_seconds < 1e6 < cost.seconds
    assert cost.peak_memory_bytes < 512 << 20


def test_a_run_does_not_go_on_with_other_groups(
    cells: tuple[Path, list[CellConfig]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = cells
    config = arm(found, "gn", "calibrated")
    place = folder / "other-groups"
    assert run_cell(config, place, stop_after(2)) is None
    before = (place / "checkpoint.safetensors").read_bytes()

    def calibrate_elsewhere(converted: nn.Module, *arguments: object, **settings: object) -> None:
        """As on a machine whose last bits make the other choice; every weight keeps its shape."""
        for module in converted.modules():
            if isinstance(module, GroupNorm):
                module.num_groups = 2

    monkeypatch.setattr(_arm, "calibrate", calibrate_elsewhere)
    with pytest.raises(StudyError, match=r"this start chose \[2, 2, .*retry DIR --from-start"):
        run_cell(config, place)
    assert (place / "checkpoint.safetensors").read_bytes() == before
    monkeypatch.undo()
    assert run_cell(config, place) is not None


def test_a_trained_network_for_other_classes_is_refused(cells: tuple[Path, list[CellConfig]]) -> None:
    folder, found = cells
    state = trained_state(folder, found)
    others = {name: value[:7].clone() for name, value in state.items() if value.shape[:1] == (10,)}
    assert len(others) == 2  # the classifier's weight and bias
    with pytest.raises(StudyError, match=r"does not fit the network: .* is \(7,\) for \(10,\).*Every entry must fit\."):
        build_network(arm(found, "gn", "copied"), turned_digits(), state | others)


def test_a_trained_network_that_is_missing_or_damaged_is_refused_with_what_to_do(
    cells: tuple[Path, list[CellConfig]], tmp_path: Path
) -> None:
    folder, found = cells
    config = arm(found, "gn", "copied")
    with pytest.raises(StudyError, match=rf"run that cell first, with --out \S+{found[0].cell_id}"):
        run_cell(config, tmp_path / config.cell_id)
    content = bytearray((folder / found[0].cell_id / "weights.safetensors").read_bytes())
    place = tmp_path / found[0].cell_id / "weights.safetensors"
    place.parent.mkdir()
    for damaged in (content[:-100], content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]):
        place.write_bytes(damaged)
        with pytest.raises(StudyError, match=r"Run the study again.* is then made again"):
            run_cell(config, tmp_path / config.cell_id)


def test_the_pre_training_is_of_upright_images_of_the_other_half(cells: tuple[Path, list[CellConfig]]) -> None:
    _, found = cells
    assert (found[0].half, found[0].rotation, found[0].train_images) == ("first", 0.0, 320)
    assert {(cell.half, cell.rotation, cell.train_images) for cell in found[1:]} == {("second", 30.0, 160)}
    assert found[0].data_fingerprint == load_data("digits").take(320, half="first").fingerprint()
    assert {cell.data_fingerprint for cell in found[1:]} == {turned_digits().fingerprint()}


def test_each_seed_starts_from_its_own_pre_training_and_is_known_by_it() -> None:
    cells = cells_of(quick_fine_tuning(seeds=2))
    longer = cells_of(quick_fine_tuning(seeds=2, **{"pretraining.epochs": 3}))
    by_seed = {cell.seed: cell.cell_id for cell in cells if cell.keeps_weights}
    pairs = list(zip(cells, longer, strict=True))
    started = [(one, other) for one, other in pairs if one.start == "calibrated"]
    assert len(started) == len(by_seed) == 2
    for one, other in started:
        assert one.pretraining == by_seed[one.seed]
        assert one.cell_id != other.cell_id
        assert one.arm_id == started[0][0].arm_id
    assert json.loads(started[0][0].model_dump_json())["pretraining"] == by_seed[0]
