"""`python -m benchmarks.conversion --json FILE --work DIR`: what a trained network keeps when Batch Norm goes.

Three ResNet-20 of `benchmarks.trained_networks`: accuracy on the 10,000 test images right after conversion and after
recovery; and how long planning, applying and calibrating a ResNet-50 takes. Every figure is written as it is found; run
again, it does what is missing.
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
import torchvision
from torch import Tensor, nn

from batchfree import __version__
from batchfree.convert import calibrate, convert, recover
from batchfree.records import write_atomically
from batchfree.study._data import load_data
from benchmarks.trained_networks import SEEDS, accuracy_percent, fashion_images, trained_network

CALIBRATION_IMAGES, RECOVERY_IMAGES, RECOVERY_STEPS = 64, 512, 200
#: (norm, ws, groups) by the name that the tables use
ARMS: dict[str, tuple[Any, Any, Any]] = {
    "gn auto": ("gn", False, "auto"),
    "ln": ("ln", False, "keep"),
    "gn+ws": ("gn", True, "auto"),
    "strict ws": ("gn", "strict", "auto"),
}
#: What calibration may choose besides the affine parameters, by the name that the tables use
CHOICES: dict[str, dict[str, Any]] = {
    "all kept": {},
    "eps auto": {"eps": "auto"},
    "eps and filters auto": {"eps": "auto", "filters": "auto"},
}


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
    figures.get(f"affine copied, ln/{seed}", lambda: fashion.accuracy(convert(original, "ln")))
    for chosen in CHOICES:
        for arm in ARMS:
            name = f"calibrated {arm}, {chosen}/{seed}"
            figures.get(name, lambda a=arm, c=chosen: fashion.accuracy(_calibrated(fashion, seed, a, c)))  # type: ignore[misc]


def recovering(fashion: Fashion, figures: Figures, seed: int) -> None:
    """Accuracy after recovery."""

    def recovered(arm: str, chosen: str, parameters: Any = "norm") -> float:
        network = _calibrated(fashion, seed, arm, chosen)
        recover(network, fashion.networks[seed], fashion.unlabelled(seed), RECOVERY_STEPS, parameters=parameters)
        return fashion.accuracy(network)

    for chosen in CHOICES:
        for arm in ("gn auto", "ln", "gn+ws"):
            figures.get(f"recovered {arm}, {chosen}/{seed}", lambda a=arm, c=chosen: recovered(a, c))  # type: ignore[misc]
    figures.get(
        f"recovered strict ws, all parameters, eps auto/{seed}", lambda: recovered("strict ws", "eps auto", "all")
    )


def _calibrated(fashion: Fashion, seed: int, arm: str, chosen: str) -> nn.Module:
    original = fashion.networks[seed]
    norm, ws, groups = ARMS[arm]
    converted = convert(original, norm, ws=ws)
    images = fashion.unlabelled(seed)[:CALIBRATION_IMAGES]
    calibrate(converted, original, images, groups=groups, **CHOICES[chosen])
    return converted


def timing() -> dict[str, float]:
    """Median seconds for ResNet-50 at 224 px: to convert with an example and to calibrate, beside the forwards."""
    original = torchvision.models.resnet50(weights=None).eval()
    images = torch.randn(CALIBRATION_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    example = images[:1]
    converted = convert(original, example_inputs=example).eval()
    cases: dict[str, Callable[[], Any]] = {
        "example_forward": lambda: original(example),
        "convert": lambda: convert(original, example_inputs=example),
        "both_forwards": lambda: (original(images), converted(images)),
        "calibrate": lambda: calibrate(converted, original, images),
        "calibrate_all": lambda: calibrate(converted, original, images, groups="auto", eps="auto", filters="auto"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(3):
        for name, case in cases.items():
            began = time.perf_counter()
            with torch.no_grad():
                case()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **medians,
        "convert_beyond_forward": medians["convert"] - medians["example_forward"],
        "calibrate_over_forwards": medians["calibrate"] / medians["both_forwards"],
        "calibrate_all_over_forwards": medians["calibrate_all"] / medians["both_forwards"],
    }


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def summary(values: dict[str, Any]) -> list[str]:
    """Per arm: accuracy, and the part of Batch Norm's that is kept; mean over the networks, and each."""
    lines = []
    arms = dict.fromkeys(name.rpartition("/")[0] for name in values if name.rpartition("/")[2].isdigit())
    for arm in arms:
        found = {seed: values[f"{arm}/{seed}"] for seed in SEEDS if f"{arm}/{seed}" in values}
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
    parser.add_argument("--only", default="", help="keep, recover or time; all where not given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = Figures(given.json)
    figures.values |= {"batchfree": __version__, "torch": torch.__version__, "machine": platform.machine()}
    parts = {"keep": keeping, "recover": recovering}
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
