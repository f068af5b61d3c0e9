from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree.errors import ConversionError
from batchfree.records import BATCH_FREE_NORMS, NORMS, CellConfig, Norm
from batchfree.study._arm import NetworkImages, build_network, group_counts
from batchfree.study._data import ImageData, load_data
from batchfree.torch import GroupNorm, WSConv2d


def arm(cell: CellConfig, norm: Norm, **changes: object) -> CellConfig:
    return cell.model_copy(update={"norm": norm, "norm_batch": None if norm in BATCH_FREE_NORMS else 32, **changes})


def standardised(cell: CellConfig, digits: ImageData) -> Tensor:
    return NetworkImages(cell, digits).training(slice(8))


def test_arms_share_every_initial_parameter(cell: CellConfig, digits: ImageData) -> None:
    networks = [build_network(arm(cell, norm), digits) for norm in NORMS if norm != "none"]
    reference = dict(networks[0].named_parameters())
    for network in networks[1:]:
        parameters = dict(network.named_parameters())
        assert parameters.keys() == reference.keys()
        assert all(torch.equal(parameters[name], reference[name]) for name in reference)
    # the zero-initialised last gamma of a residual block included, and other seeds differ
    assert reference["blocks.0.norm2.weight"].eq(0).all()
    other = dict(build_network(arm(cell, "gn", seed=1), digits).named_parameters())
    assert not torch.equal(other["conv.weight"], reference["conv.weight"])


def test_each_arm_has_its_norm_and_no_other(cell: CellConfig, digits: ImageData) -> None:
    counts = {norm: group_counts(build_network(arm(cell, norm), digits)) for norm in NORMS}
    assert counts["none"] == counts["bn"] == counts["bn+ws"] == ()
    assert counts["ln"] == (1,) * 7
    assert counts["gn"] == counts["gn+ws"] == (1, 1, 1, 2, 2, 4, 4)  # 16 channels per group
    assert counts["in"] == (16, 16, 16, 32, 32, 64, 64)
    kinds: dict[Norm, type[nn.Module]] = {"gn+ws": GroupNorm, "bn+ws": nn.BatchNorm2d}
    for norm, kind in kinds.items():
        standardized = build_network(arm(cell, norm), digits)
        assert all(isinstance(module, WSConv2d) for module in standardized.modules() if isinstance(module, nn.Conv2d))
        assert sum(isinstance(module, kind) for module in standardized.modules()) == 7
    bare = build_network(arm(cell, "none"), digits)
    assert not any(isinstance(module, (GroupNorm, nn.BatchNorm2d, WSConv2d)) for module in bare.modules())
    assert bare(standardised(cell, digits)).isfinite().all()


@pytest.mark.parametrize(
    "norm", [norm for norm in BATCH_FREE_NORMS if norm != "bn-frozen"]
)  # see test_frozen_batch_norm
def test_the_norm_batch_cannot_reach_a_batch_free_arm(norm: Norm, cell: CellConfig, digits: ImageData) -> None:
    """Micro-batches of any size accumulate to the gradient of the whole batch: one run stands for all norm batches."""
    images, labels = standardised(cell, digits).double(), digits.train_labels[:8]
    gradients = []
    for norm_batch in (8, 2, 1):
        network = build_network(arm(cell, norm), digits).double()
        for module in network.modules():  # no gamma zero, or no gradient would pass
            if isinstance(module, GroupNorm):
                nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(module.num_channels))
        for part, wanted in zip(images.split(norm_batch), labels.split(norm_batch), strict=True):
            (F.cross_entropy(network(part), wanted) * norm_batch / 8).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        assert not list(network.buffers())  # nothing remembers the batches it saw
    for whole, halves, singles in zip(*gradients, strict=True):
        assert whole is not None
        assert whole.abs().max() > 0
        for parts in (halves, singles):
            assert parts is not None
            assert torch.allclose(whole, parts, rtol=1e-9, atol=1e-12)


def test_the_norm_batch_does_reach_batch_norm(cell: CellConfig, digits: ImageData) -> None:
    """The claim above can fail: the same check on the Batch Norm arm does."""
    images, labels = standardised(cell, digits), digits.train_labels[:8]
    gradients = []
    for norm_batch in (8, 2):
        network = build_network(arm(cell, "bn", norm_batch=norm_batch), digits)
        F.cross_entropy(network(images), labels).backward()
        gradient = network.get_parameter("conv.weight").grad
        assert gradient is not None
        gradients.append(gradient)
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.1)


def test_groups_that_do_not_divide_are_refused_with_the_layers_name(cell: CellConfig, digits: ImageData) -> None:
    with pytest.raises(ConversionError, match="norm: 16 channels do not split into 3 equal groups"):
        build_network(arm(cell, "gn", groups=3), digits)
    assert group_counts(build_network(arm(cell, "gn", groups=8), digits)) == (8,) * 7


def test_a_layer_narrower_than_the_groups_asked_for_gets_what_exists(cell: CellConfig, digits: ImageData) -> None:
    assert group_counts(build_network(arm(cell, "gn", groups=32), digits)) == (16, 16, 16, 32, 32, 32, 32)
    wide = arm(cell, "gn", channels_per_group=32)
    assert group_counts(build_network(wide, digits)) == (1, 1, 1, 1, 1, 2, 2)


def test_grey_images_are_repeated_for_a_network_of_three_channels(cell: CellConfig, digits: ImageData) -> None:
    colour = arm(cell, "gn", model="torchvision:resnet18", image_size=32)
    larger = load_data("digits", image_size=32).take(16)
    images = NetworkImages(colour, larger).training(slice(4))
    assert images.shape == (4, 3, 32, 32)
    pixels = larger.train_images.double()
    assert torch.allclose(images[:, :1].double(), (pixels[:4] - pixels.mean()) / pixels.std(correction=0), atol=1e-5)
    assert torch.equal(images[:, 0], images[:, 2])
    assert build_network(colour, larger).eval()(images).shape == (4, 10)
