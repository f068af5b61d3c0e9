from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d as Reference

from batchfree.errors import StudyError
from batchfree.study._evaluation import has_batch_norm
from batchfree.study._frozen_batch_norm import with_frozen_batch_norm
from tests.closeness import assert_close


def trained_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    state = {name: torch.rand(4) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    norm.load_state_dict(state, strict=False)
    return norm


def test_it_is_torchvisions_in_training_too_gradients_included() -> None:
    torch.manual_seed(0)
    norm = trained_norm()
    reference = Reference(4)
    reference.load_state_dict(norm.state_dict())
    network = with_frozen_batch_norm(nn.Sequential(norm)).train()
    x, upstream = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    gradients = []
    for module in (network, reference):
        given = x.clone().requires_grad_()
        output = module(given)
        (output * upstream).sum().backward()
        gradients.append((output.detach(), given.grad))
    (output, gradient), (expected, expected_gradient) = gradients
    assert_close(output, expected)
    assert gradient is not None
    assert expected_gradient is not None
    assert_close(gradient, expected_gradient)
    assert all(torch.equal(network.state_dict()[f"0.{name}"], value) for name, value in norm.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert norm.weight.requires_grad, "the network it was made of is left as it was"


def test_no_statistics_are_recomputed_for_it() -> None:
    network = nn.Sequential(trained_norm())
    assert has_batch_norm(network)
    assert not has_batch_norm(with_frozen_batch_norm(network))


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.BatchNorm1d(4), "0 are not BatchNorm2d"),
        (nn.BatchNorm3d(4), "0 are not BatchNorm2d"),
        (nn.BatchNorm2d(4, track_running_stats=False), "keeps no running average"),
    ],
)
def test_what_it_cannot_freeze_is_refused_as_its_own(norm: nn.Module, reason: str) -> None:
    with pytest.raises(StudyError, match=rf"^frozen Batch Norm was asked for.*{reason}.*eave bn-frozen out of --norms"):
        with_frozen_batch_norm(nn.Sequential(norm))
