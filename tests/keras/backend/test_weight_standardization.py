from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from batchfree import reference
from batchfree.errors import ArgumentError
from batchfree.keras import WeightStandardizedConv1D, WeightStandardizedConv2D, WeightStandardizedConv3D
from tests.closeness import assert_close
from tests.keras.backend.autodiff import BACKEND, Array, to_numpy

LAYERS = [WeightStandardizedConv1D, WeightStandardizedConv2D, WeightStandardizedConv3D]
PLAIN = {
    WeightStandardizedConv1D: keras.layers.Conv1D,
    WeightStandardizedConv2D: keras.layers.Conv2D,
    WeightStandardizedConv3D: keras.layers.Conv3D,
}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def filters_first(kernel: Array) -> Array:
    return np.moveaxis(kernel, -1, 0)


@pytest.mark.parametrize(("kind", "variant"), list(zip(LAYERS, ["bit", "qiao", "bit"], strict=True)))
def test_the_layer_is_a_convolution_with_the_standardised_kernel(kind: Any, variant: Any) -> None:
    rank = LAYERS.index(kind) + 1
    options: dict[str, Any] = {"padding": "causal" if rank == 1 else "same", "bias_initializer": "random_normal"}
    layer = kind(6, 3, activation="relu", variant=variant, name="conv", **options)
    x = normal(2, *(5,) * rank, 4)
    y = to_numpy(layer(x))

    plain = PLAIN[kind](6, 3, activation="relu", **options)
    plain.build(x.shape)
    standardized = reference.standardize_weight(filters_first(to_numpy(layer.kernel)), variant)
    plain.set_weights([np.moveaxis(standardized, 0, -1).astype("float32"), to_numpy(layer.bias)])
    assert_close(y, to_numpy(plain(x)).astype("float64"))

    folded = layer.fold()
    assert type(folded) is PLAIN[kind]
    assert folded.name == "conv"
    assert_close(to_numpy(folded(x)), y.astype("float64"))


def test_the_raw_kernel_is_stored_and_a_plain_convolution_takes_and_gives_it(tmp_path: Path) -> None:
    plain = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    model = keras.Sequential([keras.Input((8, 8, 3)), WeightStandardizedConv2D(4, 3)])
    model.set_weights(plain.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert all((ours == theirs).all() for ours, theirs in zip(loaded.get_weights(), plain.get_weights(), strict=True))


def test_every_argument_survives_the_config() -> None:
    layer = WeightStandardizedConv2D(
        6, (3, 1), 2, "same", dilation_rate=1, groups=2, activation="silu", use_bias=False,
        kernel_initializer="he_normal", kernel_regularizer="l2", variant="qiao", epsilon=1e-6, name="conv",
    )  # fmt: skip
    restored = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(restored) is WeightStandardizedConv2D
    assert restored.get_config() == layer.get_config()


def test_mixed_precision_standardises_the_float32_kernel() -> None:
    layer = WeightStandardizedConv2D(6, 1, dtype="mixed_float16", use_bias=False)
    layer.build((None, 1, 1, 64))
    kernel = normal(1, 1, 64, 6) * 1e-4 + 1  # rounded to float16 first, its variation would be lost
    layer.set_weights([kernel])
    x = normal(1, 1, 1, 64).astype("float16")
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    wanted = x.reshape(64).astype("float64") @ reference.standardize_weight(filters_first(kernel)).reshape(6, 64).T
    assert np.abs(to_numpy(ops.cast(y, "float32")).reshape(6) - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("arguments", "shape", "named"),
    [({}, (None, 8, 8, 1), "fan-in of 1"), ({"groups": 4}, (None, 8, 8, 4), "fan-in of 1")],
)
def test_a_fan_in_of_one_is_refused_by_name(
    arguments: dict[str, Any], shape: tuple[int | None, ...], named: str
) -> None:
    layer = WeightStandardizedConv2D(4, 1, name="pointwise", **arguments)
    with pytest.raises(ArgumentError, match="pointwise") as raised:
        layer.build(shape)
    assert named in str(raised.value)


def test_unknown_variants_and_negative_epsilons_are_refused() -> None:
    with pytest.raises(ArgumentError, match="Did you mean bit"):
        WeightStandardizedConv2D(4, 3, variant="bitt")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="-1"):
        WeightStandardizedConv2D(4, 3, epsilon=-1)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras on torch trains eagerly")
def test_a_compiled_training_step_moves_the_raw_kernel() -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), WeightStandardizedConv2D(4, 3), keras.layers.Flatten()])
    model.compile("sgd", "mse", jit_compile=True)
    before = to_numpy(model.layers[0].kernel).copy()
    model.fit(normal(2, 8, 8, 3), normal(2, 144, seed=1), verbose=0)
    assert (to_numpy(model.layers[0].kernel) != before).all()
