"""The kernels alone, into memory that is already there, and torch's operators, which allocate, for the same work."""

from __future__ import annotations

from collections.abc import Callable

import torch

from batchfree import _core
from benchmarks.cases import Case

__all__ = ["KERNELS", "kernels"]

KERNELS = ("forward kernel", "backward kernel")
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 2}
_RELU = 1


def kernels(case: Case) -> dict[str, dict[str, Callable[[], object]]]:
    """Per measure of KERNELS, ours and torch's: ReLU of Group Norm, and all three gradients."""
    ours, torchs = _ours(case), _torchs(case)
    return {name: {"ours": mine, "torch": peer} for name, mine, peer in zip(KERNELS, ours, torchs, strict=True)}


def _parameters(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(case.shape[1], generator=generator), torch.randn(case.shape[1], generator=generator)


def _ours(case: Case) -> tuple[Callable[[], object], Callable[[], object]]:
    x, dy = case.tensor(0), case.tensor(1)
    weight, bias = _parameters(case)
    y, dx, dweight, dbias = (torch.empty_like(like) for like in (x, x, weight, bias))
    samples, channels = case.shape[:2]
    moments = torch.empty(2 * samples * case.groups, dtype=torch.float64)
    problem = _core.Problem(
        samples,
        channels,
        x.numel() // (samples * channels),
        case.groups,
        case.layout == "last",
        _ELEMENTS[case.dtype],
        _ELEMENTS[torch.float32],
        _RELU,
        False,
        1e-5,
        torch.get_num_threads(),
    )
    # The closures hold the tensors, whose addresses alone are passed on.
    held = (x, dy, weight, bias, y, dx, dweight, dbias, moments)
    x_, dy_, weight_, bias_, y_, dx_, dweight_, dbias_, moments_ = (tensor.data_ptr() for tensor in held)

    def forward(_held: object = held) -> None:
        _core.forward(problem, x_, weight_, bias_, 0, y_, moments_)

    def backward(_held: object = held) -> None:
        _core.backward(problem, dy_, x_, weight_, bias_, 0, moments_, dx_, 0, dweight_, dbias_)

    forward()
    return forward, backward


def _torchs(case: Case) -> tuple[Callable[[], object], Callable[[], object]]:
    x, dy = case.tensor(0), case.tensor(1)
    weight, bias = _parameters(case)
    samples, channels = case.shape[:2]
    sizes = (samples, channels, x.numel() // (samples * channels), case.groups)

    def forward() -> tuple[torch.Tensor, ...]:
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, 1e-5)
        return torch.relu_(y), mean, rstd

    y, mean, rstd = forward()

    def backward() -> object:
        dz = torch.ops.aten.threshold_backward(dy, y, 0)
        return torch.ops.aten.native_group_norm_backward(dz, x, mean, rstd, weight, *sizes, [True, True, True])

    return forward, backward
