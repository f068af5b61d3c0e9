from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from batchfree import weights
from batchfree.errors import ArgumentError
from batchfree.weights import misfit, read_safetensors, shortened


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda state: None, True),
        # saved before torch counted batches
        (lambda state: state.pop("0.num_batches_tracked"), True),
        (lambda state: state.pop("0.running_mean"), False),
        (lambda state: state.pop("1.bias"), False),
        (lambda state: state.update(more=torch.zeros(1)), False),
        (lambda state: state.update({"1.weight": torch.zeros(3, 5)}), False),
    ],
)
def test_a_state_fits_exactly_where_torch_takes_it(change: Callable[[dict[str, Tensor]], object], fits: bool) -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    state = dict(network.state_dict())
    change(state)
    assert (misfit(network.state_dict(), state) == "") == fits
    if fits:
        network.load_state_dict(state)
    else:
        with pytest.raises(RuntimeError, match="Error"):
            network.load_state_dict(state)


def test_a_long_list_is_cut_and_what_is_left_out_is_counted() -> None:
    names = [f"{letter} is missing" for letter in "abcdefgh"]
    assert shortened(names) == f"{'; '.join(names[:6])}; and 2 more"
    assert shortened(names[:6]) == "; ".join(names[:6])


def test_a_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.arange(4.0)}, path)
    assert torch.equal(read_safetensors(path)["weight"], torch.arange(4.0))
    path.write_bytes(path.read_bytes()[:-3])
    for refused in (path, tmp_path / "gone.safetensors"):
        with pytest.raises(ArgumentError, match=refused.name):
            read_safetensors(refused)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(weights, extraglobs={"torch": torch}).failed == 0
