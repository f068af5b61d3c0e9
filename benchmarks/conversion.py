"""`python -m benchmarks.conversion --json FILE --work DIR`: what a trained network keeps when Batch Norm goes.

Three ResNet-20 of `benchmarks.trained_networks`: accuracy on the 10,000 test images right after conversion, after
recovery, and after fine-tuning at norm batch 2 on a shifted version of the images; and how long calibration takes.
Every figure is written as it is found; run again, it does what is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree import __version__
from batchfree.convert import calibrate, convert, recover
from batchfree.records import write_atomically
from batchfree.study._data import load_data
from benchmarks.trained_networks import SEEDS, accuracy_percent, fashion_images, trained_network

CALIBRATION_IMAGES, RECOVERY_IMAGES, RECOVERY_STEPS = 64, 512, 200
#: (norm, ws, groups chosen by the fit) by the name that the tables use
ARMS: dict[str, tuple[Any, Any, Any]] = {
    "gn auto": ("gn", False, "auto"),
    "ln": ("ln", False, "keep"),
    "gn+ws": ("gn", True, "auto"),
}
#: Fine-tuning: few images, one pass at batch 2, the better of these rates on validation images.
TUNING_IMAGES, TUNING_VALIDATION, TUNING_TEST, TUNING_PASSES = 400, 1000, 3000, 1
LEARNING_RATES = (3e-4, 3e-3)
NORM_BATCH = 2


class Figures:
    """Results by name, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure of that name, measured if it is not there."""
        if name not in self.values:
            self.values[name] = measure()
            write_atomically(self.path, (json.dumps(self.values, indent=1) + "\n").encode())
            print(name, self.values[name], flush=True)
        return self.values[name]


class Fashion:
    """The images, and for each seed the unlabelled ones that conversion may look at."""

    def __init__(self, work: Path) -> None:
        data = load_data("fashion-mnist")
        self.train, self.test = fashion_images(data)
        self.train_labels, self.test_labels = data.train_labels, data.validation_labels
        self.networks = [trained_network(seed, work) for seed in SEEDS]

    def unlabelled(self, seed: int) -> Tensor:
        return self.train[_order(len(self.train), 100 + seed)[:RECOVERY_IMAGES]]

    def accuracy(self, network: nn.Module) -> float:
        return accuracy_percent(network, self.test, self.test_labels)


def keeping(fashion: Fashion, figures: Figures, seed: int) -> None:
    """Accuracy right after conversion."""
    original = fashion.networks[seed]
    figures.get(f"bn/{seed}", lambda: fashion.accuracy(original))
    for affine in ("fresh", "keep"):
        figures.get(f"affine {affine}, ln/{seed}", lambda a=affine: fashion.accuracy(convert(original, "ln", affine=a)))  # type: ignore[misc]
    for eps in ("keep", "auto"):
        for arm in ARMS:
            name = f"calibrated {arm} eps {eps}/{seed}"
            figures.get(name, lambda a=arm, e=eps: fashion.accuracy(_calibrated(fashion, seed, a, e)))  # type: ignore[misc]


def recovering(fashion: Fashion, figures: Figures, seed: int) -> None:
    """Accuracy after recovery."""

    def recovered(arm: str, eps: Any, parameters: Any) -> float:
        network = _calibrated(fashion, seed, arm, eps)
        recover(network, fashion.networks[seed], fashion.unlabelled(seed), RECOVERY_STEPS, parameters=parameters)
        return fashion.accuracy(network)

    for arm in ARMS:
        figures.get(f"recovered {arm} eps auto/{seed}", lambda a=arm: recovered(a, "auto", "norm"))  # type: ignore[misc]
    figures.get(f"recovered gn auto eps keep/{seed}", lambda: recovered("gn auto", "keep", "norm"))
    figures.get(f"recovered strict eps auto, all/{seed}", lambda: recovered("strict", "auto", "all"))


def tuning(fashion: Fashion, figures: Figures, seed: int) -> None:
    """Error after fine-tuning at norm batch 2 on the images upside down and at half their contrast."""
    original = fashion.networks[seed]
    arms: dict[str, Callable[[], nn.Module]] = {
        "bn trained": lambda: original,
        "bn frozen": lambda: original,
        "gn fresh": lambda: convert(original, "ln", affine="fresh"),
        "gn copied": lambda: convert(original, "ln"),
        "gn calibrated": lambda: _calibrated(fashion, seed, "gn auto", "keep", shifted),
        "gn calibrated, eps auto": lambda: _calibrated(fashion, seed, "gn auto", "auto", shifted),
    }
    for arm, build in arms.items():
        figures.get(f"tuned {arm}/{seed}", lambda a=arm, b=build: _best_rate(fashion, seed, b, frozen=a == "bn frozen"))  # type: ignore[misc]


def shifted(images: Tensor) -> Tensor:
    """Images that the network was not trained on: upside down, at half contrast."""
    return images.flip(2) * 0.5


def _best_rate(fashion: Fashion, seed: int, build: Callable[[], nn.Module], *, frozen: bool) -> dict[str, float]:
    order = _order(len(fashion.train), 200 + seed)
    training, validation = order[:TUNING_IMAGES], order[TUNING_IMAGES : TUNING_IMAGES + TUNING_VALIDATION]
    best: dict[str, float] = {}
    for rate in LEARNING_RATES:
        network = _copy(build())
        before = _tuned_error(network, fashion.train[validation], fashion.train_labels[validation])
        _tune(network, fashion, training, rate, frozen=frozen)
        error = _tuned_error(network, fashion.train[validation], fashion.train_labels[validation])
        if not best or error < best["validation_error"]:
            test = _tuned_error(network, fashion.test[:TUNING_TEST], fashion.test_labels[:TUNING_TEST])
            best = {"learning_rate": rate, "before": before, "validation_error": error, "test_error": test}
    return best


def _tune(network: nn.Module, fashion: Fashion, chosen: Tensor, rate: float, *, frozen: bool) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9)
    network.train(not frozen)
    steps = TUNING_PASSES * len(chosen) // NORM_BATCH
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        start = step * NORM_BATCH % len(chosen)
        part = chosen[start : start + NORM_BATCH]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(shifted(fashion.train[part])), fashion.train_labels[part]).backward()
        optimizer.step()


def _tuned_error(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 - accuracy_percent(network, shifted(images), labels)


def _calibrated(
    fashion: Fashion, seed: int, arm: str, eps: Any, change: Callable[[Tensor], Tensor] = lambda images: images
) -> nn.Module:
    original = fashion.networks[seed]
    norm, ws, groups = ARMS.get(arm, ("gn", "strict", "auto"))
    converted = convert(original, norm, ws=ws)
    calibrate(converted, original, change(fashion.unlabelled(seed)[:CALIBRATION_IMAGES]), groups=groups, eps=eps)
    return converted


def timing() -> dict[str, float]:
    """Seconds of calibration and of one evaluation forward of both ResNet-50, alternating."""
    import torchvision

    original = torchvision.models.resnet50(weights=None).eval()
    images = torch.randn(CALIBRATION_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    converted = convert(original).eval()
    seconds: dict[str, list[float]] = {"both_forwards": [], "calibrate": []}
    for _ in range(3):
        began = time.perf_counter()
        with torch.inference_mode():
            original(images)
            converted(images)
        seconds["both_forwards"].append(time.perf_counter() - began)
        began = time.perf_counter()
        calibrate(converted, original, images)
        seconds["calibrate"].append(time.perf_counter() - began)
    ratio = statistics.median(a / b for a, b in zip(seconds["calibrate"], seconds["both_forwards"], strict=True))
    return {**{name: statistics.median(values) for name, values in seconds.items()}, "ratio": ratio}


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _copy(network: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(network)


def summary(values: dict[str, Any]) -> list[str]:
    """Per arm: accuracy kept, in percent of Batch Norm's, and tuned errors, mean over the networks."""
    lines = []
    arms = dict.fromkeys(name.rpartition("/")[0] for name in values if name.rpartition("/")[2].isdigit())
    for arm in arms:
        found = {seed: values[f"{arm}/{seed}"] for seed in SEEDS if f"{arm}/{seed}" in values}
        if arm.startswith("tuned"):
            mean = statistics.mean(each["test_error"] for each in found.values())
            lines.append(f"{arm}: error {mean:.2f} % ({len(found)} networks)")
        else:
            kept = [100 * accuracy / values[f"bn/{seed}"] for seed, accuracy in found.items()]
            lines.append(
                f"{arm}: accuracy {statistics.mean(found.values()):.2f} %, kept {statistics.mean(kept):.2f} % "
                f"({', '.join(f'{each:.2f}' for each in kept)})"
            )
    return lines


def main() -> int:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures are kept")
    parser.add_argument("--work", type=Path, required=True, help="where the trained networks are kept")
    parser.add_argument("--only", default="", help="keep, recover, tune or time; all where not given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = Figures(given.json)
    figures.values |= {"batchfree": __version__, "torch": torch.__version__, "machine": platform.machine()}
    parts = {"keep": keeping, "recover": recovering, "tune": tuning}
    if given.only != "time":
        fashion = Fashion(given.work)
        for name, part in parts.items():
            if given.only in ("", name):
                for seed in SEEDS:
                    part(fashion, figures, seed)
    if given.only in ("", "time"):
        figures.get("time", timing)
    print(*summary(figures.values), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
