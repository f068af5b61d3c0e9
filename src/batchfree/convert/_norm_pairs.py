"""Which new norm stands for which old one, and what the old one computes in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.convert._kinds import read_batch_norm
from batchfree.errors import ArgumentError, ConversionError

__all__ = ["NormPair", "norm_pairs"]


@dataclass(frozen=True)
class NormPair:
    """A norm of the original network and the Group Norm at the same places of the converted one."""

    name: str  # the first dotted name
    old: Any  # frozen norms share no class
    new: nn.GroupNorm

    @property
    def eps(self) -> float:
        """Of the old norm."""
        facts = read_batch_norm(self.old)
        assert facts is not None
        return facts.eps

    @property
    def sign(self) -> Tensor:
        """Of the old weight, (C,) float64 on the CPU."""
        if self.old.weight is None:
            return torch.ones(self.new.num_channels, dtype=torch.float64)
        weight = self.old.weight.detach().double().cpu()
        return torch.where(weight < 0, -1.0, 1.0)

    @property
    def has_running_statistics(self) -> bool:
        """Whether the old norm has both; else it uses the batch's in evaluation too."""
        return self.old.running_mean is not None and self.old.running_var is not None

    def scale_and_shift(self, batch_mean: Tensor, batch_variance: Tensor) -> tuple[Tensor, Tensor]:
        """The old norm in evaluation mode, without its activation, is `scale * x + shift` per channel.

        Args:
            batch_mean, batch_variance: (C,) float64 of its input, which stand in where it has no running statistics.
        """
        mean, variance = self.old.running_mean, self.old.running_var
        mean = batch_mean if mean is None else mean.detach().double().cpu()
        variance = batch_variance if variance is None else variance.detach().double().cpu()
        scale = (variance + self.eps).rsqrt()
        if self.old.weight is not None:
            scale = scale * self.old.weight.detach().double().cpu()
        shift = -mean * scale
        if self.old.bias is not None:
            shift = shift + self.old.bias.detach().double().cpu()
        return scale, shift

    def unlikeness(self, mean: Tensor, variance: Tensor) -> float:
        """How many times further the old norm's input is from its running mean than it was in training, by the median
        channel; 1 where it has no running statistics.

        Args:
            mean, variance: (C,) float64 of its input.
        """
        if not self.has_running_statistics:
            return 1.0
        expected, spread = (value.detach().double().cpu() for value in (self.old.running_mean, self.old.running_var))
        return float(((variance + (mean - expected).square() + self.eps) / (spread + self.eps)).median().sqrt())


def norm_pairs(original: nn.Module, converted: nn.Module) -> list[NormPair]:
    """Every Group Norm of `converted` that stands where `original` has a norm over the batch, frozen ones included.

    Raises:
        ArgumentError: one of them is no module.
        ConversionError: there is none, or the two networks do not fit together; every reason is listed.
    """
    for given in (original, converted):
        if not isinstance(given, nn.Module):
            raise ArgumentError(
                f"a {type(given).__name__} was given as a network. It must be a torch.nn.Module. Pass the networks."
            )
    old_modules: dict[str, Any] = dict(original.named_modules(remove_duplicate=False))
    new_modules = dict(converted.named_modules(remove_duplicate=False))
    partners: dict[nn.Module, nn.Module] = {}
    pairs: list[NormPair] = []
    reasons: list[str] = []
    for name, old in old_modules.items():
        new = new_modules.get(name)
        facts = read_batch_norm(old)
        if facts is None or type(new) is type(old):
            continue
        if not isinstance(new, nn.GroupNorm):
            found = "nothing" if new is None else f"a {type(new).__name__}"
            reasons.append(f"{name or '(the model itself)'}: a {type(old).__name__} in the original, {found} here")
        elif partners.setdefault(new, old) is not old:
            reasons.append(f"{name}: one norm here stands for several of the original")
        elif facts.channels != new.num_channels:
            reasons.append(f"{name}: {facts.channels} channels in the original, {new.num_channels} here")
        elif all(pair.new is not new for pair in pairs):
            pairs.append(NormPair(name, old, new))
    if reasons:
        raise ConversionError(
            "the original and the converted network disagree in architecture; nothing was changed:\n"
            + "\n".join(f"  {reason}" for reason in reasons)
            + "\nThe converted one must come from convert(original, ...). Convert the original again."
        )
    if not pairs:
        raise ConversionError(
            f"no Group Norm of the {type(converted).__name__} stands where the {type(original).__name__} has a Batch "
            f"Norm. At least one must. Pass convert(original, ...) first, and the original second."
        )
    return pairs
