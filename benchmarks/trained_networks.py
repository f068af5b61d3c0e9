"""`python -m benchmarks.trained_networks --work DIR`: the Batch Norm networks that `benchmarks.conversion` converts.

ResNet-20 on Fashion-MNIST's 60,000 images, one per seed, kept as safetensors so that another run trains nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from batchfree.records import write_atomically
from batchfree.study._data import ImageData, load_data
from batchfree.study._models import build_model

__all__ = ["SEEDS", "accuracy_percent", "fashion_images", "trained_network"]

SEEDS = (0, 1, 2)
IMAGES_SEEN = 150_000
BATCH = 128
LEARNING_RATE = 0.1


def fashion_images(data: ImageData) -> tuple[Tensor, Tensor]:
    """Training and test images, standardised with the training part's statistics."""
    mean, deviation = data.channel_statistics()
    return (data.train_images - mean) / deviation, (data.validation_images - mean) / deviation


def trained_network(seed: int, work: Path) -> nn.Module:
    """The Batch Norm network of that seed in evaluation mode, trained if `work` does not hold it yet."""
    network = build_model("resnet20", in_channels=1, num_classes=10)
    path = work / f"resnet20-bn-seed{seed}.safetensors"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        error = _train(seed)
        write_atomically(path, error)
    with safe_open(path, framework="pt") as file:
        network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (no mapping)
    return network.eval()


def accuracy_percent(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In evaluation mode; the training flags come back."""
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        right = sum(
            int((network(part).argmax(1) == wanted).sum())
            for part, wanted in zip(images.split(250), labels.split(250), strict=True)
        )
    network.train(was_training)
    return 100 * right / len(images)


def _train(seed: int) -> bytes:
    data = load_data("fashion-mnist")
    images, test = fashion_images(data)
    torch.manual_seed(seed)
    # With zero gammas the channels that a shortcut pads with zeros would be 0 before a ReLU for ever: 48 of 64.
    network = build_model("resnet20", in_channels=1, num_classes=10, zero_gamma=False)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = IMAGES_SEEN // BATCH
    order = torch.cat([torch.randperm(len(images)) for _ in range(math.ceil(IMAGES_SEEN / len(images)))])
    began = time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = order[step * BATCH : (step + 1) * BATCH]
        batch = images[chosen]
        if torch.rand(()) < 0.5:
            batch = batch.flip(3)
        optimizer.zero_grad(set_to_none=True)
        # bfloat16 trains twice as fast on the processors that have it; the network is used in float32 afterwards
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(scores.float(), data.train_labels[chosen])
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(
                f"seed {seed} step {step}/{steps} loss {loss.item():.3f} {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    network = network.to(memory_format=torch.contiguous_format)
    error = 100 - accuracy_percent(network, test, data.validation_labels)
    print(f"seed {seed}: error {error:.2f} % in {time.perf_counter() - began:.0f} s", flush=True)
    return save(
        {key: value.contiguous() for key, value in network.state_dict().items()}, {"error_percent": f"{error:.2f}"}
    )


def main() -> int:
    """Trains what is not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained_networks", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where the networks are kept")
    work = parser.parse_args().work
    torch.set_num_threads(1)
    for seed in SEEDS:
        trained_network(seed, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
