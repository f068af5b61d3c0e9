from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from batchfree.errors import RecordError
from batchfree.study._checkpoint import TrainingState, load_checkpoint, save_checkpoint


def trained() -> tuple[nn.Module, torch.optim.SGD]:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(4, 1, 5, 5)).square().sum().backward()
    optimizer.step()
    return network, optimizer


STATE = TrainingState(epoch=3, step=7, loss_sum=0.1 + 0.2, metrics_bytes=11, total_steps=40, seconds=1.5)


def test_weights_momentum_and_counters_come_back_bit_for_bit(tmp_path: Path) -> None:
    network, optimizer = trained()
    save_checkpoint(tmp_path / "checkpoint", STATE, network, optimizer)
    other, other_optimizer = trained()
    assert load_checkpoint(tmp_path / "checkpoint", other, other_optimizer, metrics_bytes=11) == STATE
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        saved = optimizer.state[ours]["momentum_buffer"]
        assert torch.equal(other_optimizer.state[theirs]["momentum_buffer"], saved)


def test_a_flipped_bit_anywhere_and_a_cut_file_are_found(tmp_path: Path) -> None:
    network, optimizer = trained()
    path = tmp_path / "checkpoint"
    save_checkpoint(path, STATE, network, optimizer)
    whole = path.read_bytes()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    header = int.from_bytes(whole[:8], "little")
    positions = [*range(0, 8 + header, 7), 8 + header + 5, len(whole) - 3]
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(RecordError):
            load_checkpoint(path, network, optimizer, metrics_bytes=11)
    for cut in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(RecordError):
            load_checkpoint(path, network, optimizer, metrics_bytes=11)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_whose_metrics_were_lost_is_refused(tmp_path: Path) -> None:
    network, optimizer = trained()
    save_checkpoint(tmp_path / "checkpoint", STATE, network, optimizer)
    with pytest.raises(RecordError, match="lines were lost"):
        load_checkpoint(tmp_path / "checkpoint", network, optimizer, metrics_bytes=10)
