"""Networks of `keras.applications`, with random weights: convert, forward and one training step, all at batch 1."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import keras
import numpy as np
import pytest

from batchfree.keras import GroupNormalization, convert
from tests.keras.backend.autodiff import BACKEND, to_numpy

WITHOUT_BATCH_NORM = {"VGG16", "VGG19", *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge"))}
#: Keras itself refuses to build these.
UNAVAILABLE = {"NASNetMobile"} if BACKEND == "torch" else set()
#: Every other one that this Keras has.
NETWORKS = sorted(
    {name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)} - WITHOUT_BATCH_NORM - UNAVAILABLE
)
#: Depthwise and plain convolutions, squeeze and excite, hard and smooth activations, bottlenecks.
REPRESENTATIVE = ["EfficientNetB0", "MobileNetV3Small", "ResNet50"]
#: The smallest inputs that Keras lets these have; 32 for the others.
SMALLEST = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}

pytestmark = pytest.mark.skipif(BACKEND == "jax", reason="JAX compiles a network for a minute; the layers are tested")


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_one_of_each_kind_converts_and_trains_at_batch_one(name: str) -> None:
    converts_and_trains(name)


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_converts_and_trains_at_batch_one(name: str) -> None:
    converts_and_trains(name)


def converts_and_trains(name: str) -> None:
    """With Weight Standardization too: what it converts besides leaves the norms as they are without it."""
    keras.utils.set_random_seed(0)
    size = SMALLEST.get(name, 32)
    build = getattr(keras.applications, name)
    model: Any = build(weights=None, input_shape=(size, size, 3), classes=4, classifier_activation=None)
    norms = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers())
    converted = convert(model, ws=True)
    assert norms > 0
    assert sum(isinstance(layer, GroupNormalization) for layer in converted._flatten_layers()) == norms
    del model
    image = np.random.default_rng(0).uniform(0, 255, size=(1, size, size, 3)).astype("float32")
    assert np.isfinite(to_numpy(converted(image))).all()
    before = to_numpy(converted.trainable_weights[0]).copy()
    # Of logits: Keras clips probabilities, and a clipped one, which random weights may well give, has no gradient.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    converted.compile(keras.optimizers.SGD(1e-3), loss, run_eagerly=True)
    assert np.isfinite(converted.train_on_batch(image, np.array([2])))
    after = to_numpy(converted.trainable_weights[0])
    assert np.isfinite(after).all()
    assert (before != after).any()
    del converted
    keras.backend.clear_session()
    gc.collect()
