from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from batchfree import reference
from batchfree.errors import ConversionError
from batchfree.keras import GroupNormalization, WeightStandardizedConv2D, convert
from tests.closeness import assert_close
from tests.keras.backend.autodiff import BACKEND, Array, to_numpy


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def residual_network(**norm: Any) -> Any:
    """Two convolutions with Batch Norm around a skip connection, random in every weight and statistic."""
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="stem_norm", **norm)(layers.Conv2D(32, 3, name="stem")(inputs))
    skip = layers.ReLU()(x)
    x = layers.Conv2D(32, 3, padding="same", name="branch", use_bias=False)(skip)
    x = layers.Add()([skip, layers.BatchNormalization(name="branch_norm", scale=False)(x)])
    model = keras.Model(inputs, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))
    generator = np.random.default_rng(1)
    model.set_weights([generator.uniform(0.5, 1.5, size=one.shape) for one in model.get_weights()])
    return model


def test_every_norm_is_replaced_and_every_weight_kept() -> None:
    model = residual_network(epsilon=1e-4, gamma_regularizer="l2", trainable=False)
    converted = convert(model)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in converted.layers)
    assert [layer.name for layer in converted.layers[1:]] == [layer.name for layer in model.layers[1:]]
    norm = converted.get_layer("stem_norm")
    assert isinstance(norm, GroupNormalization)
    assert (norm.groups, norm.epsilon, norm.trainable, norm.gamma_regularizer is None) == (2, 1e-4, False, False)
    for name in ("stem", "branch", "head"):
        for old, new in zip(model.get_layer(name).get_weights(), converted.get_layer(name).get_weights(), strict=True):
            assert (old == new).all()
    for name in ("gamma", "beta"):
        assert (to_numpy(getattr(norm, name)) == to_numpy(getattr(model.get_layer("stem_norm"), name))).all()
    assert converted.get_layer("branch_norm").gamma is None
    assert np.isfinite(to_numpy(converted(normal(1, 8, 8, 3)))).all()


def test_the_original_is_left_as_it_is() -> None:
    model = residual_network()
    x, before = normal(2, 8, 8, 3), [one.copy() for one in model.get_weights()]
    y = to_numpy(model(x))
    convert(model, ws=True, images=x)
    assert all((old == new).all() for old, new in zip(before, model.get_weights(), strict=True))
    assert_close(to_numpy(model(x)), y.astype("float64"))


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [({}, 2), ({"groups": 1}, 1), ({"groups": -1}, 32), ({"groups": 8}, 8), ({"channels_per_group": 4}, 8)],
)
def test_groups_are_chosen_as_asked(arguments: dict[str, Any], groups: int) -> None:
    assert convert(residual_network(), **arguments).get_layer("stem_norm").groups == groups


def test_ws_standardises_convolutions_that_feed_norms_and_no_others() -> None:
    inputs = keras.Input((8, 8, 3))
    feeds_norm = layers.Conv2D(16, 3, name="feeds_norm")(inputs)
    used_twice = layers.Conv2D(16, 3, name="used_twice")(inputs)
    activated = layers.Conv2D(16, 3, name="activated", activation="relu")(inputs)
    norms = [layers.BatchNormalization()(x) for x in (feeds_norm, used_twice, activated)]
    model = keras.Model(inputs, [*norms, used_twice])
    converted = convert(model, ws=True)
    standardized = [layer.name for layer in converted.layers if isinstance(layer, WeightStandardizedConv2D)]
    assert standardized == ["feeds_norm"]


def test_nested_and_sequential_models_are_converted_inside() -> None:
    block = keras.Sequential(
        [keras.Input((6, 6, 16)), layers.Conv2D(16, 3), layers.BatchNormalization(name="inner")], name="block"
    )
    inputs = keras.Input((6, 6, 16))
    model = keras.Model(inputs, block(layers.BatchNormalization(name="outer")(inputs)))
    converted = convert(model, images=normal(4, 6, 6, 16))
    assert isinstance(converted.get_layer("outer"), GroupNormalization)
    assert isinstance(converted.get_layer("block").layers[1], GroupNormalization)
    assert isinstance(block.layers[1], layers.BatchNormalization)


def test_operators_and_dropout_in_the_graph_are_carried() -> None:
    inputs = keras.Input((4, 4, 16))
    x = layers.Dropout(0.5)(layers.BatchNormalization()(inputs)) + 3.0
    model = keras.Model(inputs, keras.ops.relu(x) * layers.Rescaling(2.0)(inputs))
    x = normal(2, 4, 4, 16)
    wanted = np.moveaxis(reference.group_norm(np.moveaxis(x, -1, 1), 1, eps=1e-3), 1, -1) + 3
    assert_close(to_numpy(convert(model)(x)), np.maximum(wanted, 0) * 2 * x)


def test_with_images_each_norm_has_the_old_ones_mean_and_deviation_per_channel() -> None:
    model, x = residual_network(), normal(16, 8, 8, 3)
    converted = convert(model, images=x)
    for name in ("stem_norm", "branch_norm"):
        old, new = (
            to_numpy(keras.Model(one.inputs[0], one.get_layer(name).output)(x)).astype("float64")
            for one in (model, converted)
        )
        np.testing.assert_allclose(new.mean((0, 1, 2)), old.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(new.std((0, 1, 2)), old.std((0, 1, 2)), rtol=1e-4)
    # The whole fit of the first norm, by hand: z from the specification, t from Batch Norm's inference formula.
    features = to_numpy(keras.Model(model.inputs[0], model.get_layer("stem").output)(x))
    z = reference.group_norm(np.moveaxis(features, -1, 1), 2, eps=1e-3)
    norm = model.get_layer("stem_norm")
    gamma, beta, mean, variance = (one.astype("float64") for one in norm.get_weights())
    deviation = np.abs(gamma) * features.astype("float64").std((0, 1, 2)) / np.sqrt(variance + 1e-3)
    fitted = deviation / z.std((0, 2, 3))
    assert_close(to_numpy(converted.get_layer("stem_norm").gamma), fitted)
    target = gamma * (features.astype("float64").mean((0, 1, 2)) - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(
        to_numpy(converted.get_layer("stem_norm").beta), target - fitted * z.mean((0, 2, 3)), rtol=1e-4, atol=1e-4
    )


def test_a_negative_gamma_stays_negative() -> None:
    model = residual_network()
    gamma, *others = model.get_layer("stem_norm").get_weights()
    model.get_layer("stem_norm").set_weights([-gamma, *others])
    assert (to_numpy(convert(model, images=normal(8, 8, 8, 3)).get_layer("stem_norm").gamma) < 0).all()


def test_calibration_leaves_no_trace_on_the_layers() -> None:
    model = residual_network()
    converted = convert(model, images=normal(4, 8, 8, 3))
    assert "call" not in vars(model.get_layer("stem_norm"))
    assert "call" not in vars(converted.get_layer("stem_norm"))


def test_every_reason_is_listed_by_path_and_nothing_is_changed() -> None:
    class OwnNorm(layers.BatchNormalization):
        pass

    inputs = keras.Input((8, 8, 48))
    x = layers.BatchNormalization(name="indivisible")(inputs)
    x = OwnNorm(name="own")(x)
    x = layers.TimeDistributed(layers.BatchNormalization(name="hidden"), name="wrapper")(x)
    with pytest.raises(ConversionError) as raised:
        convert(keras.Model(inputs, x, name="network"), groups=32)
    for part in ("network", "indivisible: 48 channels do not split into 32", "own: it is a", "wrapper: ", "'hidden'"):
        assert part in str(raised.value)
    assert re.search(r"Pass groups=24", str(raised.value))


def test_a_model_without_batch_norm_and_a_subclassed_one_are_refused() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="own")
            self.norm = layers.BatchNormalization()

        def call(self, x: Any) -> Any:
            return self.norm(x)

    with pytest.raises(ConversionError, match="no Batch Norm"):
        convert(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))
    with pytest.raises(ConversionError, match="Functional and Sequential"):
        convert(Own())


@pytest.mark.parametrize("images", [np.zeros((0, 8, 8, 3), "float32"), np.full((1, 8, 8, 3), np.nan, "float32")])
def test_images_that_cannot_calibrate_are_refused(images: Array) -> None:
    with pytest.raises(ValueError, match=r"images"):
        convert(residual_network(), images=images)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="training a network once is enough: the fit is tested above")
def test_a_trained_network_keeps_its_accuracy_with_images_and_loses_it_without() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = (digits.images[..., None] / 16).astype("float32"), digits.target
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for filters in (16, 32, 32):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:1300], y[:1300], batch_size=64, epochs=8, verbose=0)

    def accuracy(network: Any) -> float:
        return float((network.predict(x[1300:], verbose=0).argmax(1) == y[1300:]).mean())

    trained = accuracy(model)
    assert trained > 0.9
    assert accuracy(convert(model)) < 0.6
    assert accuracy(convert(model, images=x[:64])) > trained - 0.06
