from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from batchfree.study._checkpoint import (
    TrainingState,
    has_checkpoint,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)


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


def test_a_flipped_bit_anywhere_and_a_cut_file_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, optimizer = trained()
    path = tmp_path / "checkpoint"
    save_checkpoint(path, STATE, network, optimizer)
    whole = path.read_bytes()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = []
    for position in (*range(0, header, 5), header + 5, len(whole) - 3):
        damaged.append(bytearray(whole))
        damaged[-1][position] ^= 1 << position % 8
    damaged += [bytearray(whole[:length]) for length in (0, 5, 100, len(whole) - 1)]
    for content in damaged:
        path.write_bytes(content)
        assert load_checkpoint(path, network, optimizer, metrics_bytes=11) == TrainingState()
        assert "the previous checkpoint is tried" in capsys.readouterr().out
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_checkpoint_before_the_last_is_used_when_the_last_is_damaged_or_missing(tmp_path: Path) -> None:
    network, optimizer = trained()
    path = tmp_path / "checkpoint"
    save_checkpoint(path, STATE, network, optimizer)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer.step()
    save_checkpoint(path, replace(STATE, step=8), network, optimizer)
    path.write_bytes(path.read_bytes()[:-1])
    assert load_checkpoint(path, network, optimizer, metrics_bytes=11) == STATE
    assert all(torch.equal(value, first[name]) for name, value in network.state_dict().items())
    assert not path.exists()  # or the next one would put it in the place of the good one
    assert has_checkpoint(path)
    assert load_checkpoint(path, network, optimizer, metrics_bytes=11) == STATE
    save_checkpoint(path, replace(STATE, step=9), network, optimizer)
    path.write_bytes(b"")
    assert load_checkpoint(path, network, optimizer, metrics_bytes=11) == STATE
    remove_checkpoints(path)
    assert not has_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_whose_metrics_were_lost_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, optimizer = trained()
    save_checkpoint(tmp_path / "checkpoint", STATE, network, optimizer)
    assert load_checkpoint(tmp_path / "checkpoint", network, optimizer, metrics_bytes=10) == TrainingState()
    assert "lines were lost" in capsys.readouterr().out
