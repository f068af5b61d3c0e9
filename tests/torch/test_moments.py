"""Parts together are the whole: tiles, ranks, and their gradients."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributed.nn.functional import all_reduce
from torch.multiprocessing.spawn import spawn

from batchfree import reference
from batchfree.errors import ArgumentError
from batchfree.torch import Moments, _moments, apply_moments, group_norm, kernel_info, merge_moments, moments
from tests.closeness import assert_close


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_match_reference(offset: float, format: torch.memory_format) -> None:
    x = (tensor(2, 12, 9, 30) + offset).contiguous(memory_format=format)
    size, mean, variance = moments(x, 3)
    wanted = reference.moments(x.numpy(), 3)
    assert size == wanted.size
    assert abs(mean.numpy() - wanted.mean).max() < 1e-6 * max(offset, 1)
    assert abs(variance.numpy() / wanted.variance - 1).max() < 1e-5
    compiled_away = torch.func.vmap(lambda sample: moments(sample[None], 3).mean)(x)[:, 0]
    assert abs(compiled_away.numpy() - wanted.mean).max() < 1e-6 * max(offset, 1)


def test_a_large_map_in_nine_tiles_equals_the_whole() -> None:
    x = tensor(1, 64, 1024, 1024) * 3 + 20
    weight, bias = tensor(64, seed=1), tensor(64, seed=2)
    # Three uneven cuts each way, as tiled autoencoders make them.
    tiles = [tile for rows in x.split([300, 400, 324], dim=2) for tile in rows.split([500, 24, 500], dim=3)]
    whole = merge_moments(*(moments(tile, 8) for tile in tiles))
    done = [apply_moments(tile, whole, weight, bias, activation="silu") for tile in tiles]
    together = torch.cat([torch.cat(done[i : i + 3], dim=3) for i in (0, 3, 6)], dim=2)
    assert (together - group_norm(x, 8, weight, bias, activation="silu")).abs().max() < 1e-5


def test_gradients_match_finite_differences() -> None:
    arguments = [tensor(2, 4, 6, seed=0), tensor(4, seed=1), tensor(4, seed=2), tensor(2, 4, 6, seed=3)]
    leaves = [a.double().requires_grad_() for a in arguments]

    def in_parts(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        parts = x.split([2, 4], dim=2)
        whole = merge_moments(*(moments(part, 2) for part in parts))
        skips = residual.split([2, 4], dim=2)
        return torch.cat(
            [
                apply_moments(part, whole, weight, bias, activation="gelu", residual=skip)
                for part, skip in zip(parts, skips, strict=True)
            ],
            dim=2,
        )

    assert gradcheck(in_parts, leaves)
    x, weight, bias, residual = leaves
    assert_close(
        in_parts(*leaves),
        group_norm(x, 2, weight, bias, activation="gelu", residual=residual).detach().numpy(),
        dtype="float64",
    )


def test_kernel_and_formula_apply_alike() -> None:
    x, weight, bias = (tensor(2, 12, 5, 7) + 100).to(memory_format=torch.channels_last), tensor(12), tensor(12, seed=1)
    whole = moments(x, 3)
    with_gradient = apply_moments(x.clone().requires_grad_(), whole, weight, bias, activation="silu")
    assert_close(apply_moments(x, whole, weight, bias, activation="silu"), with_gradient.detach().double().numpy())


def test_parts_that_do_not_belong_together_are_refused() -> None:
    one, other = moments(tensor(2, 8, 3), 4), moments(tensor(2, 8, 3), 2)
    for call in (
        lambda: merge_moments(),
        lambda: merge_moments(one, other),
        lambda: apply_moments(tensor(3, 8, 3), one),
    ):
        with pytest.raises(ArgumentError):
            call()


def run_rank(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    x, upstream = tensor(2, 8, 6, 5), tensor(2, 8, 6, 5, seed=1)
    own = slice(0, 2) if rank == 0 else slice(2, 6)  # of the rows
    mine = x[:, :, own].clone().requires_grad_()
    weight = tensor(8, seed=2).requires_grad_()
    local = moments(mine, 4)
    # Everyone's moments at everyone: a sum in which each rank fills its own place.
    slots = torch.zeros(2, 2, 2, 4, dtype=torch.float64)
    slots[rank] = torch.stack([local.mean, local.variance])
    gathered = all_reduce(slots)
    sizes = [2 * 2 * 5, 2 * 4 * 5]  # two channels of two rows, and of four
    whole = merge_moments(*(Moments(size, *part) for size, part in zip(sizes, gathered, strict=True)))
    y = apply_moments(mine, whole, weight, activation="relu")
    gradients = torch.autograd.grad(y, [mine, weight], upstream[:, :, own])
    dist.all_reduce(gradients[1])
    torch.save([y.detach(), *gradients], f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_with_half_of_the_rows_each_equal_one(tmp_path: Path) -> None:
    spawn(run_rank, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    x, upstream, weight = tensor(2, 8, 6, 5), tensor(2, 8, 6, 5, seed=1), tensor(8, seed=2)
    expected = reference.group_norm_backward(upstream.numpy(), x.numpy(), 4, weight.numpy(), activation="relu")
    assert_close(torch.cat([h[0] for h in halves], dim=2), reference.group_norm(x, 4, weight, activation="relu"))
    assert_close(torch.cat([h[1] for h in halves], dim=2), expected.input)
    assert expected.weight is not None
    for half in halves:
        assert_close(half[2], expected.weight)


def test_kernel_info_says_what_is_used_and_why_not_the_rest() -> None:
    info = kernel_info()
    assert info.not_in_use["torch's own operators"]
    assert all(reasons for reasons in info.not_in_use.values())
    assert "the tensor is empty" in kernel_info(torch.empty(0, 2)).not_in_use["the compiled kernels"]
    assert info.instruction_set in str(info)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(_moments, extraglobs={"group_norm": group_norm}).failed == 0
