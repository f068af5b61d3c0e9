"""What torch.onnx.export writes: standard operators, any batch, and onnxruntime's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from batchfree import reference
from batchfree.torch import Activation, GroupNorm, WSConv2d
from tests.closeness import assert_close

ACTIVATIONS: list[Activation | None] = [None, "relu", "silu", "gelu", "gelu_tanh"]


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class EveryActivation(nn.Module):
    """Every activation without and with a residual, and both kinds of standardised filters."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(GroupNorm(3, 12, activation=activation) for activation in ACTIVATIONS)
        self.convs = nn.ModuleList(WSConv2d(12, 4, 3, bias=False, variant=v) for v in ("bit", "qiao"))
        for seed, parameter in enumerate(self.norms.parameters()):
            parameter.data = tensor(12, seed=10 + seed)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        plain = [norm(x) for norm in self.norms]
        return *plain, *(norm(x, residual) for norm in self.norms), *(conv(x) for conv in self.convs)

    def expected(self, x: Tensor, residual: Tensor) -> list[Any]:
        outputs: list[Any] = [
            reference.group_norm(
                x, 3, norm.weight.detach(), norm.bias.detach(), activation=norm.activation, residual=skip
            )
            for skip in (None, residual)
            for norm in self.norms
            if isinstance(norm, GroupNorm)
        ]
        for conv in self.convs:
            assert isinstance(conv, WSConv2d)
            filters = reference.standardize_weight(conv.weight.detach(), conv.variant)
            outputs.append(nn.functional.conv2d(x.double(), torch.from_numpy(filters)).numpy())
        return outputs


# torch's exporter is built on parts of torch that torch warns of.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnxruntime_gives_the_references_numbers_from_standard_operators(tmp_path: Path) -> None:
    network = EveryActivation().eval()
    dynamic = {0: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        network,
        (tensor(2, 12, 6, 5), tensor(2, 12, 6, 5, seed=1)),
        dynamo=True,
        dynamic_shapes=(dynamic, dynamic),
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "network.onnx")
    model = onnx.load(tmp_path / "network.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert [domain.domain for domain in model.opset_import] == [""]
    assert not model.functions
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for batch in (2, 1, 5):
        x, residual = tensor(batch, 12, 6, 5, seed=2), tensor(batch, 12, 6, 5, seed=3)
        names = [given.name for given in session.get_inputs()]
        outputs = session.run(None, dict(zip(names, (x.numpy(), residual.numpy()), strict=True)))
        for got, wanted in zip(outputs, network.expected(x, residual), strict=True):
            assert_close(np.asarray(got), wanted)
