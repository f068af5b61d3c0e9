"""Networks as training leaves them, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def trained_like(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random running statistics, weights of both signs and biases, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for buffer, low, high in ((module.running_mean, -1.0, 1.0), (module.running_var, 0.5, 2.0)):
                if buffer is not None:
                    buffer.uniform_(low, high, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.normal_(1, 0.7, generator=generator)
                    module.bias.normal_(0, 0.3, generator=generator)
    return network.eval()


def small_network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)]
    return trained_like(nn.Sequential(*layers, nn.ReLU()).to(dtype))  # type: ignore[return-value]


def images(count: int = 12, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *(shape or (3, 9, 8)), generator=torch.Generator().manual_seed(1), dtype=dtype)


def affine(network: nn.Module) -> list[Tensor]:
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    return [value.detach().clone() for norm in norms for value in norm.parameters()]
