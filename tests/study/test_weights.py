from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from batchfree.errors import StudyError
from batchfree.study._weights import load_weights
from batchfree.study._weights_file import check_weights_file


def network(classes: int = 3, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes))


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, path)
    return path


def test_a_classifier_for_other_classes_stays_fresh_and_all_else_is_taken(tmp_path: Path) -> None:
    source, model = network(classes=10), network(classes=3)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    load_weights(model, saved(tmp_path / "w.safetensors", source.state_dict()), 3)
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if key.startswith("3.") else source.state_dict()[key]), key
    same_classes = network(classes=10)
    load_weights(same_classes, tmp_path / "w.safetensors", 10)
    assert torch.equal(same_classes[3].weight, source[3].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("0.bias"), "0.bias is missing"),
        (lambda state: state.update(more=torch.zeros(1)), "more is unknown"),
        (lambda state: state.update({"1.weight": torch.zeros(5)}), r"1\.weight is \(5,\) for \(4,\)"),
        # both the classifier and another layer: another network
        (
            lambda state: state.update({"1.weight": torch.zeros(5), "3.bias": torch.zeros(7)}),
            r"1\.weight is \(5,\) for \(4,\); 3\.bias is \(7,\) for \(3,\)",
        ),
        # other features before the classifier: another network
        (lambda state: state.update({"3.weight": torch.zeros(3, 5)}), r"3\.weight is \(3, 5\) for \(3, 4\)"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    state = network().state_dict()
    change(state)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(StudyError, match=said):
        load_weights(model, saved(tmp_path / "w.safetensors", state), 3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_damaged_or_unknown_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", network().state_dict())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StudyError, match="cannot be read"):
        load_weights(network(), path, 3)
    torch.save(network().state_dict(), tmp_path / "w.pth")
    with pytest.raises(StudyError, match=r"can run code.*not read"):
        check_weights_file(str(tmp_path / "w.pth"))
    with pytest.raises(StudyError, match="not there"):
        check_weights_file(str(tmp_path / "other.safetensors"))
    check_weights_file(str(path))
