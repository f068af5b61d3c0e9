"""The settings of one arm: everything a study's file may say of a run, with its default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, PositiveInt

from batchfree.errors import StudyError
from batchfree.records import BATCH_FREE_NORMS, STARTS, CellConfig, Half, Norm, Start
from batchfree.study._data import ImageData, data_size, load_data, resolve_data
from batchfree.study._study_file import plain
from batchfree.study._weights_file import weights_fingerprint

__all__ = ["ArmSettings", "LearningRateScale"]

LearningRateScale = Literal["none", "sgd_batch", "norm_batch"]
#: The learning rate is for so many images of the batch that scales it (Wu & He 2018, section 4.1).
SCALE_IMAGES = 32


class ArmSettings(BaseModel):
    """One arm, for all its seeds. Units: images, pixels, epochs; sizes are at least 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: str = Field("digits", description="digits, fashion-mnist, cifar10, pets, or a folder of class folders")
    data_dir: str | None = Field(None, description="where the files of a named data set lie")
    split: str | None = Field(None, description='of pets: "official" (default) or "blog"')
    image_size: PositiveInt | None = Field(None, description="side in pixels; as the data set has it")
    stored_size: PositiveInt | None = Field(None, description="side of training images before the crop; image_size")
    half: Half | None = Field(None, description="of the training images, first or second; both")
    rotation: FiniteFloat = Field(0.0, description="of every image, in degrees")
    train_images: PositiveInt | None = Field(None, description="a fixed random subset of so many; all")
    validation_images: PositiveInt | None = Field(None, description="the same of the validation images; all")
    augment: Literal["none", "crop-flip", "resized-crop", "blog"] = Field(
        "none", description="random changes to images"
    )
    mixup: Annotated[FiniteFloat, Field(ge=0, description="alpha; images of a step are blended in pairs; 0: none")] = (
        0.0
    )
    model: str = Field("resnet8", description="a small network, torchvision:NAME or timm:NAME")
    weights: str | None = Field(None, description='"pretrained", or a .safetensors or .npz file; from scratch')
    start: Start = Field("scratch", description="scratch, or what is made of the network of [pretraining]")
    norm: Norm = Field("bn", description="none, bn, bn-frozen, bn+ws, gn, gn+ws, ln or in")
    norm_batch: PositiveInt | None = Field(None, description="images that share Batch Norm's statistics; the SGD batch")
    groups: PositiveInt | Literal["auto"] = Field("auto", description="of each norm of gn and gn+ws")
    channels_per_group: PositiveInt | None = Field(None, description="instead of groups")
    zero_gamma: bool | None = Field(None, description="last gamma of each residual block 0 or 1; as the model has it")
    sgd_batch: PositiveInt = Field(32, description="images that make one step")
    norm_batches_per_step: PositiveInt | None = Field(None, description="the SGD batch is so many norm batches")
    workers: PositiveInt = Field(1, description="processes that share each SGD batch (torchrun)")
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Annotated[FiniteFloat, Field(gt=0, description="for 32 images, where the next key scales it")] = 0.1
    learning_rate_scale: LearningRateScale = Field("sgd_batch", description="the batch it grows with, or none")
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Literal["cosine", "step", "constant", "bit"] = "cosine"
    epochs: PositiveInt = 15
    max_steps: PositiveInt | None = Field(None, description="so many optimiser steps, instead of epochs")
    rule: Literal["bit"] | None = Field(None, description="bit: what BiT's rule gives where no setting says otherwise")
    seeds: PositiveInt = Field(3, description="runs per arm, with seeds 0, 1, ...")
    threads: PositiveInt = Field(1, description="per run; they move the last bits")
    device: str = Field("cpu", description="cpu, or an accelerator as torch names it")

    @property
    def source(self) -> tuple[object, ...]:
        """What decides the images; arms of the same source share them."""
        taken = self.half, self.rotation, self.train_images, self.validation_images
        return self.data, self.data_dir, self.split, self.image_size, self.stored_size, *taken

    def load(self, *, download: bool = False) -> ImageData:
        """The images.

        Raises:
            StudyError: a rule is left to decide.
            DataError: they are missing, damaged or unusable, or fewer than asked for.
        """
        if self.rule is not None:
            raise StudyError(
                f"rule = {plain(self.rule)} is not decided yet. Images are read for decided settings. Call "
                f"study.decided() first."
            )
        data = load_data(
            self.data,
            data_dir=self.data_dir,
            image_size=self.image_size,
            stored_size=self.stored_size,
            split=self.split,
            download=download,
        )
        return data.take(self.train_images, self.validation_images, half=self.half).rotated(self.rotation)

    def measured(self, *, download: bool = False) -> tuple[int, int]:
        """How many training images `load` gives, and the area in pixels that they have before they are resized.

        Of photos, the area is the median of the whole training set, whatever part of it `half` and `train_images` pick.

        Raises:
            DataError: they are missing, damaged or unusable.
        """
        images, area = data_size(self.data, data_dir=self.data_dir, split=self.split, download=download)
        if self.half is not None:
            images = images // 2 if self.half == "first" else images - images // 2
        return self.train_images or images, area

    def cells(
        self, study: str, protocol: str, data: ImageData, fingerprint: str, pretraining: Sequence[CellConfig] = ()
    ) -> list[CellConfig]:
        """One cell per seed; one that starts from a trained network names the cell of its seed in `pretraining`."""
        norm_batch, sgd_batch = self.batches
        per_epoch = len(data.train_images) // sgd_batch or 1
        fingerprint_of_weights = weights_fingerprint(self.weights)
        is_grouped = self.norm in ("gn", "gn+ws")
        follows_norm_batch = self.norm_batches_per_step is not None or self.learning_rate_scale == "norm_batch"
        return [
            CellConfig(
                study=study,
                protocol=protocol,
                model=self.model,
                weights=str(Path(self.weights).resolve()) if self.weights and fingerprint_of_weights else self.weights,
                weights_fingerprint=fingerprint_of_weights,
                start=self.start,
                pretraining=None if self.start == "scratch" else pretraining[seed].cell_id,
                norm=self.norm,
                norm_batch=None if self.norm in BATCH_FREE_NORMS and not follows_norm_batch else norm_batch,
                groups=self.groups if is_grouped else "auto",
                channels_per_group=self.channels_per_group if is_grouped else None,
                zero_gamma=self.zero_gamma,
                sgd_batch=sgd_batch,
                workers=self.workers,
                optimizer=self.optimizer,
                learning_rate=self._learning_rate(norm_batch, sgd_batch),
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                schedule=self.schedule,
                epochs=self.epochs if self.max_steps is None else -(-self.max_steps // per_epoch),
                max_steps=self.max_steps,
                augment=self.augment,
                mixup=self.mixup,
                data=resolve_data(self.data),
                data_fingerprint=fingerprint,
                data_dir=None if self.data_dir is None else str(Path(self.data_dir).resolve()),
                split=self.split,
                half=self.half,
                rotation=self.rotation,
                train_images=len(data.train_images),
                validation_images=len(data.validation_images),
                image_size=self.image_size,
                stored_size=self.stored_size,
                seed=seed,
                threads=self.threads,
                device=self.device,
            )
            for seed in range(self.seeds)
        ]

    def problems(self) -> list[str]:
        """Why these settings do not go together, each with what to do; empty where they do."""
        found = []
        if self.norm not in STARTS[self.start] and self.start != "scratch":
            found.append(
                f"start = {self.start!r} was given with norm = {self.norm!r}. Norms that can start so: "
                f"{', '.join(STARTS[self.start])}. Pass one of these, or another start"
            )
        if self.start == "scratch" and self.norm == "bn-frozen":
            found.append(
                "norm = 'bn-frozen' was given with start = 'scratch', where Batch Norm has learnt nothing to freeze. "
                "It needs start = 'trained'. Pass that, and a [pretraining] table"
            )
        if self.groups != "auto" and self.channels_per_group is not None:
            found.append(
                f"groups = {self.groups} and channels_per_group = {self.channels_per_group} were given. One of them "
                f"decides the split. Leave one out"
            )
        if self.norm_batches_per_step is not None and self.norm_batch is None:
            found.append(
                "norm_batches_per_step was given without norm_batch, which it multiplies. Give both, or sgd_batch alone"
            )
        if self.max_steps is not None and "epochs" in self.model_fields_set:
            found.append(
                f"epochs = {self.epochs} and max_steps = {self.max_steps} were given. One of them says how long a run "
                f"is. Leave one out"
            )
        if problem := CellConfig.crop_problem(self.stored_size, self.image_size, self.augment):
            found.append(problem)
        norm_batch, sgd_batch = self.batches
        per_worker, rest = divmod(sgd_batch, self.workers)
        if rest:
            fits = _divisors(sgd_batch)
            found.append(
                f"an SGD batch of {sgd_batch} does not split over {self.workers} workers. Workers that fit: {fits}. "
                f"Pass one of these"
            )
        elif self.norm not in BATCH_FREE_NORMS and per_worker % norm_batch:
            found.append(
                f"norm batch {norm_batch} does not divide the SGD batch of {per_worker}"
                f"{' per worker' if self.workers > 1 else ''}. Norm batches that fit: {_divisors(per_worker)}. "
                f"Pass some of these, or another sgd_batch"
            )
        return found

    @property
    def batches(self) -> tuple[int, int]:
        """(norm batch, SGD batch)."""
        if self.norm_batches_per_step is not None:
            norm_batch = self.norm_batch or 1
            return norm_batch, norm_batch * self.norm_batches_per_step
        return self.norm_batch or self.sgd_batch // self.workers, self.sgd_batch

    def _learning_rate(self, norm_batch: int, sgd_batch: int) -> float:
        if self.learning_rate_scale == "none":
            return self.learning_rate
        images = sgd_batch if self.learning_rate_scale == "sgd_batch" else norm_batch
        return self.learning_rate / SCALE_IMAGES * images


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
