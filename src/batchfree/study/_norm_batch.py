"""The study `norm-batch`: error against the number of images that share Batch Norm's statistics."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

from pydantic import BaseModel, ConfigDict

from batchfree.errors import StudyError, unknown_name
from batchfree.records import BATCH_FREE_NORMS, NORMS, CellConfig, Norm, Protocol
from batchfree.study._arm import build_network
from batchfree.study._data import ImageData, load_data, resolve_data
from batchfree.study._models import MODELS

__all__ = ["NormBatchSettings"]

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
DEFAULT_SGD_BATCH = 32
#: Learning rate per image of the SGD batch, of protocol "fixed-sgd": 0.1 at 32. Of 0.02, 0.05 and 0.1 it gave the
#: lowest error to most arms on digits and to every arm on Fashion-MNIST, one or two seeds each.
LEARNING_RATE_PER_IMAGE = 0.1 / 32
#: Workers of the paper: the SGD batch is so many times the norm batch.
PAPER_WORKERS = 8


class NormBatchSettings(BaseModel):
    """What is asked of the study.

    Under protocol "fixed-sgd" the SGD batch and the learning rate stay while the norm batch changes, and batch-free
    arms run once per seed. Under "paper" the norm batch N sets the SGD batch 8 N and the learning rate 0.1 N / 32, as
    Wu & He 2018 did on 8 GPUs, and every arm runs at every N.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = "digits"
    data_dir: str | None = None
    image_size: int | None = None
    train_images: int | None = None  # all of them
    model: str = "resnet8"
    norms: tuple[str, ...] = NORMS
    norm_batch: tuple[int, ...] = (32, 8, 4, 2, 1)
    sgd_batch: int | None = None  # 32 under "fixed-sgd"
    learning_rate: float | None = None
    groups: int | Literal["auto"] = "auto"
    protocol: str = "fixed-sgd"
    seeds: int = 3
    epochs: int = 15
    threads: int = 1

    def load(self) -> ImageData:
        """The data set that was asked for."""
        data = load_data(self.data, data_dir=self.data_dir, image_size=self.image_size)
        return data.take(len(data.train_images) if self.train_images is None else self.train_images)

    def cells(self, data: ImageData) -> tuple[CellConfig, ...]:
        """Every cell of the study, checked down to building each arm's network once.

        Raises:
            StudyError, ConversionError: a setting is refused, with what is allowed and what to do.
        """
        self.check()
        fingerprint = data.fingerprint()
        cells = tuple(
            self._cell(norm, norm_batch, seed, data, fingerprint)
            for norm, norm_batch in self._arms()
            for seed in range(self.seeds)
        )
        for cell in cells:
            if cell.sgd_batch > len(data.train_images):
                raise StudyError(
                    f"an SGD batch of {cell.sgd_batch} is more than the {len(data.train_images)} training images. "
                    f"An epoch needs at least one full batch. Pass more --train-images or smaller batches."
                )
            if cell.seed == 0:
                build_network(cell, data)
        return cells

    def _arms(self) -> list[tuple[Norm, int | None]]:
        arms: list[tuple[Norm, int | None]] = []
        for norm in cast("tuple[Norm, ...]", self.norms):  # checked
            if self.protocol == "fixed-sgd" and norm in BATCH_FREE_NORMS:
                arms.append((norm, None))
            else:
                arms += [(norm, norm_batch) for norm_batch in self.norm_batch]
        return arms

    def _cell(self, norm: Norm, norm_batch: int | None, seed: int, data: ImageData, fingerprint: str) -> CellConfig:
        sgd_batch = DEFAULT_SGD_BATCH if self.sgd_batch is None else self.sgd_batch
        learning_rate = LEARNING_RATE_PER_IMAGE * sgd_batch if self.learning_rate is None else self.learning_rate
        if self.protocol == "paper":
            assert norm_batch is not None
            sgd_batch, learning_rate = PAPER_WORKERS * norm_batch, 0.1 * norm_batch / 32
        return CellConfig(
            study="norm-batch",
            data=resolve_data(self.data),
            data_fingerprint=fingerprint,
            data_dir=self.data_dir,
            image_size=self.image_size,
            train_images=len(data.train_images),
            model=self.model,
            norm=norm,
            norm_batch=norm_batch,
            sgd_batch=sgd_batch,
            groups=self.groups,
            protocol=cast("Protocol", self.protocol),  # checked
            learning_rate=learning_rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            schedule="step" if self.protocol == "paper" else "cosine",
            epochs=self.epochs,
            seed=seed,
            threads=self.threads,
        )

    def check(self) -> None:
        """Refuses what can be refused without the data.

        Raises:
            StudyError: a setting has a value that is not allowed.
        """
        for kind, given, allowed in (
            *(("norm", norm, NORMS) for norm in self.norms),
            ("model", self.model, tuple(MODELS)),
            ("protocol", self.protocol, get_args(Protocol)),
        ):
            if given not in allowed:
                raise StudyError(unknown_name(kind, given, allowed))
        for name, numbers in (
            ("--norm-batch", self.norm_batch),
            ("--seeds", (self.seeds,)),
            ("--epochs", (self.epochs,)),
            ("--threads", (self.threads,)),
            ("--sgd-batch", () if self.sgd_batch is None else (self.sgd_batch,)),
            ("--lr", () if self.learning_rate is None else (self.learning_rate,)),
            ("--train-images", () if self.train_images is None else (self.train_images,)),
            ("--image-size", () if self.image_size is None else (self.image_size,)),
        ):
            for number in numbers:
                if not (number > 0 and math.isfinite(number)):
                    raise StudyError(f"{name} {number} was given. It must be above 0 and finite. Pass such a number.")
        for name, values in (("--norms", self.norms), ("--norm-batch", self.norm_batch)):
            if not values or len(set(values)) != len(values):
                raise StudyError(
                    f"{name} {','.join(map(str, values))!r} was given. It must name at least one, and each once. "
                    f"Separate them with commas, for instance {'bn,gn' if name == '--norms' else '32,2'}."
                )
        self._check_batches()

    def _check_batches(self) -> None:
        if self.protocol == "paper":
            if self.sgd_batch is not None or self.learning_rate is not None:
                raise StudyError(
                    "--sgd-batch or --lr was given with --protocol paper, which ties both to the norm batch: 8 N and "
                    "0.1 N / 32. They belong to --protocol fixed-sgd. Leave them out, or pass that protocol."
                )
            return
        sgd_batch = DEFAULT_SGD_BATCH if self.sgd_batch is None else self.sgd_batch
        bad = [n for n in self.norm_batch if sgd_batch % n]
        if bad:
            fits = [n for n in range(1, sgd_batch + 1) if sgd_batch % n == 0]
            raise StudyError(
                f"norm batch {', '.join(map(str, bad))} does not divide the SGD batch of {sgd_batch}. "
                f"Norm batches that fit: {', '.join(map(str, fits))}. Pass some of these, or another --sgd-batch."
            )
