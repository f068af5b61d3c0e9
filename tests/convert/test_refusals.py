"""Networks that are refused as a whole, each with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from batchfree.convert import convert, plan_conversion
from batchfree.errors import ConversionError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())


def distributed() -> nn.Module:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(network())
    finally:
        torch.distributed.destroy_process_group()


def quantised() -> nn.Module:
    fused = torch.ao.nn.intrinsic.ConvReLU2d(nn.Conv2d(3, 16, 3), nn.ReLU())
    return nn.Sequential(fused, nn.BatchNorm2d(16))


def wrapped_lazily() -> nn.Module:
    return nn.Sequential(nn.DataParallel(network()), nn.LazyConv2d(4, 3))


CASES: list[tuple[Any, list[str]]] = [
    (distributed, ["pass model.module"]),
    (lambda: nn.DataParallel(network()), ["pass model.module"]),
    (lambda: torch.compile(network()), ["pass model._orig_mod"]),
    (lambda: torch.jit.script(network()), ["before scripting it"]),
    (lambda: torch.jit.trace(network().eval(), torch.randn(2, 3, 8, 8)), ["before scripting it"]),
    (quantised, ["before preparing it for quantisation"]),
    (wrapped_lazily, ["pass model.module", "Run the model once"]),
    (lambda: nn.utils.fuse_conv_bn_eval(nn.Conv2d(3, 4, 3).eval(), nn.BatchNorm2d(4).eval()), ["before fusing it"]),
]


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")  # torch's own, of scripting
@pytest.mark.parametrize(("build", "mends"), CASES)
def test_each_is_refused_with_every_reason_and_the_way_out(build: Any, mends: list[str]) -> None:
    model = build()
    plan = plan_conversion(model)
    assert len(plan.model_reasons) == len(mends)
    with pytest.raises(ConversionError) as caught:
        convert(model)
    for mend, reason in zip(mends, plan.model_reasons, strict=True):
        assert mend in reason
        assert reason in str(caught.value)
    assert mends[0] in str(plan).replace("\n    ", " ")


def test_the_way_out_works() -> None:
    compiled: Any = torch.compile(network())
    parallel = nn.DataParallel(network())
    for inner in (compiled._orig_mod, parallel.module):
        assert plan_conversion(inner).reasons == ()
        convert(inner)


def test_a_network_that_may_be_quantised_later_is_converted() -> None:
    model = torchvision.models.quantization.resnet18(weights=None, quantize=False)
    assert plan_conversion(model).reasons == ()
    convert(model)(torch.randn(1, 3, 32, 32))


def test_a_network_that_cannot_be_copied_is_refused_with_the_cause() -> None:
    model = network()
    model.cache = model(torch.randn(2, 3, 8, 8))  # a tensor with a history
    with pytest.raises(ConversionError, match="cannot be copied"):
        convert(model)
