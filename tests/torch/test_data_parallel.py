"""Replicas and ranks compute what one process does."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group exists: its functions keep the default one as argument, with live threads
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from batchfree import reference
from batchfree.torch import GroupNorm
from tests.closeness import assert_close

IMAGES, LABELS = (8, 3, 9, 9), 5


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(norm: type[nn.GroupNorm]) -> nn.Sequential:
    ours = issubclass(norm, GroupNorm)
    first = GroupNorm(4, 8, activation="silu") if ours else nn.Sequential(norm(4, 8), nn.SiLU())
    built = nn.Sequential(nn.Conv2d(3, 8, 3), first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, LABELS))
    for seed, parameter in enumerate(built.parameters()):
        parameter.data = tensor(*parameter.shape, seed=seed)
    return built


def step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def data() -> tuple[Tensor, Tensor]:
    return tensor(*IMAGES, seed=50), torch.arange(IMAGES[0]) % LABELS


def run_rank(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = DistributedDataParallel(network(GroupNorm))
    images, labels = data()
    step(model, images[rank::2], labels[rank::2])
    torch.save(list(model.parameters()), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_a_step_of_two_ranks_is_the_step_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    spawn(run_rank, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    whole, (images, labels) = network(nn.GroupNorm).double(), data()
    step(whole, images.double(), labels)
    for one, other, expected in zip(first, second, whole.parameters(), strict=True):
        assert torch.equal(one, other)
        assert_close(one, expected.detach().numpy())


def test_replicas_in_threads_give_gradients_to_the_original() -> None:
    # What nn.DataParallel does on each GPU's thread, without the GPUs.
    norm = GroupNorm(4, 8, activation="relu")
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x, upstream = tensor(6, 8, 5, 5), tensor(6, 8, 5, 5, seed=2)

    def replica() -> nn.Module:
        made = norm._replicate_for_data_parallel()
        for name, parameter in norm.named_parameters():
            setattr(made, name, parameter.clone())  # no leaf, as Broadcast's copies are none
        return made

    replicas = [replica() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        outputs = list(threads.map(lambda made, part: made(part), replicas, x.split(2)))
    gradients = torch.autograd.grad(torch.cat(outputs), [norm.weight, norm.bias], upstream)
    weight, bias = norm.weight.detach(), norm.bias.detach()
    assert_close(torch.cat(outputs), reference.group_norm(x, 4, weight, bias, activation="relu"))
    wanted = reference.group_norm_backward(upstream, x, 4, weight, bias, activation="relu")
    for got, expected in zip(gradients, (wanted.weight, wanted.bias), strict=True):
        assert expected is not None
        assert_close(got, expected)
    assert copy.deepcopy(norm).activation == replicas[0].activation == "relu"
