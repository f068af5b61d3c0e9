from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from batchfree import reference
from batchfree.errors import ArgumentError, GroupError
from batchfree.keras import GroupNormalization
from tests.closeness import assert_close
from tests.keras.backend.autodiff import BACKEND, Array, to_numpy


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(x: Array, groups: int, gamma: Array, beta: Array, eps: float = 1e-3) -> Array:
    return np.moveaxis(reference.group_norm(np.moveaxis(x, -1, 1), groups, gamma, beta, eps), 1, -1)


def test_arguments_are_keras_own_in_order_with_its_defaults() -> None:
    import inspect

    theirs = inspect.signature(keras.layers.GroupNormalization.__init__).parameters
    ours = inspect.signature(GroupNormalization.__init__).parameters
    assert [name for name in ours if name not in ("activation", "channels_per_group")] == list(theirs)
    assert {name: ours[name].default for name in theirs} == {name: one.default for name, one in theirs.items()}


def test_weights_of_keras_own_layer_load(tmp_path: Path) -> None:
    x, gamma, beta = normal(2, 5, 5, 8), normal(8, seed=1), normal(8, seed=2)
    models = {}
    for kind in (keras.layers.GroupNormalization, GroupNormalization):
        models[kind] = keras.Sequential([keras.Input((5, 5, 8)), kind(4, name="norm")])
    models[keras.layers.GroupNormalization].set_weights([gamma, beta])
    models[keras.layers.GroupNormalization].save_weights(tmp_path / "theirs.weights.h5")
    models[GroupNormalization].load_weights(tmp_path / "theirs.weights.h5")
    assert_close(to_numpy(models[GroupNormalization](x)), expected(x, 4, gamma, beta))


def test_config_of_keras_own_layer_builds_ours() -> None:
    theirs = keras.layers.GroupNormalization(4, axis=1, epsilon=1e-5, gamma_regularizer="l2", name="norm")
    ours = GroupNormalization.from_config(theirs.get_config())
    assert {key: value for key, value in ours.get_config().items() if key in theirs.get_config()} == theirs.get_config()


def test_every_argument_survives_the_config() -> None:
    layer = GroupNormalization(
        axis=[1, 2],
        epsilon=1e-5,
        beta_initializer=keras.initializers.Constant(0.5),
        gamma_initializer="zeros",
        beta_regularizer="l1",
        gamma_regularizer="l2",
        beta_constraint="non_neg",
        gamma_constraint="unit_norm",
        activation="silu",
        channels_per_group=4,
        name="norm",
        dtype="mixed_float16",
        trainable=False,
    )
    restored = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(restored) is GroupNormalization
    assert restored.get_config() == layer.get_config()


def test_instance_norm_keeps_minus_one_in_its_config() -> None:
    layer = GroupNormalization(-1)
    layer.build((2, 5, 8))
    assert layer.get_config()["groups"] == -1


def test_a_saved_model_loads_and_gives_the_same(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((6, 6, 4)), GroupNormalization(channels_per_group=2, activation="relu"), GroupNormalization(-1)]
    )
    gamma, beta = normal(4, seed=1), normal(4, seed=2)
    model.set_weights([gamma, beta, beta, gamma])
    model.save(tmp_path / "model.keras")
    x = normal(2, 6, 6, 4)
    hidden = np.maximum(expected(x, 2, gamma, beta), 0).astype("float32")
    assert_close(to_numpy(keras.models.load_model(tmp_path / "model.keras")(x)), expected(hidden, 4, beta, gamma))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_mixed_precision_keeps_statistics_and_affine_in_float32(half: str) -> None:
    layer = GroupNormalization(2, dtype=f"mixed_{half}", activation="silu")
    x = normal(2, 6, 6, 4) + 70_000  # above float16's largest number (keras#22586)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == half
    assert keras.backend.standardize_dtype(layer.gamma.dtype) == "float32"
    wanted = reference.apply_activation("silu", expected(x, 2, np.ones(4, "float32"), np.zeros(4, "float32")))
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[half]
    assert (np.abs(to_numpy(ops.cast(y, "float32")) - wanted) <= 1.01 * unit * np.abs(wanted) + 1e-5).all()


def test_a_mask_from_an_earlier_layer_is_honoured_and_passed_on() -> None:
    inputs = keras.Input((None, 4))
    masked = keras.layers.Masking(mask_value=9.0)(inputs)
    model = keras.Model(inputs, GroupNormalization(2)(masked))
    x = normal(2, 6, 4)
    x[:, 4:] = 9.0
    ones, zeros = np.ones(4, "float32"), np.zeros(4, "float32")
    assert_close(to_numpy(model(x))[:, :4], expected(x[:, :4], 2, ones, zeros))
    assert GroupNormalization(2).compute_mask(x, np.ones((2, 6), bool)) is not None


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_unknown_batch_and_spatial_sizes_are_served(data_format: str) -> None:
    last = data_format == "channels_last"
    inputs = keras.Input((None, None, 8) if last else (8, None, None))
    model = keras.Model(inputs, GroupNormalization(4, axis=-1 if last else 1)(inputs))
    assert model.output_shape == model.input_shape
    gamma, beta = normal(8, seed=1), normal(8, seed=2)
    model.set_weights([gamma, beta])
    for batch, size in ((1, 5), (3, 9), (0, 7)):
        x = normal(batch, size, size + 1, 8)
        y = to_numpy(model(x if last else np.moveaxis(x, -1, 1)))
        if batch:
            assert_close(y if last else np.moveaxis(y, 1, -1), expected(x, 4, gamma, beta))
        assert y.shape[0] == batch


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
def test_fit_follows_the_reference_gradient(options: dict[str, Any]) -> None:
    if BACKEND == "torch" and "jit_compile" in options:
        pytest.skip("torch.compile is not faster on a CPU (docs/keras.md)")
    model = keras.Sequential([keras.Input((4, 4, 4)), GroupNormalization(2)])
    model.compile(keras.optimizers.SGD(0.5), "mse", **options)
    x, target = normal(3, 4, 4, 4), normal(3, 4, 4, 4, seed=1)
    gamma, beta = normal(4, seed=2), normal(4, seed=3)
    model.set_weights([gamma, beta])
    model.fit(x, target, batch_size=3, verbose=0)
    upstream = 2 * (expected(x, 2, gamma, beta) - target) / target.size
    slopes = reference.group_norm_backward(np.moveaxis(upstream, -1, 1), np.moveaxis(x, -1, 1), 2, gamma, beta, 1e-3)
    assert slopes.weight is not None
    assert slopes.bias is not None
    assert_close(to_numpy(model.layers[0].gamma), gamma - 0.5 * slopes.weight)
    assert_close(to_numpy(model.layers[0].beta), beta - 0.5 * slopes.bias)


@pytest.mark.parametrize(
    ("error", "arguments", "shape", "named"),
    [
        (GroupError, {"groups": 5}, (2, 4, 4, 8), ["5", "8"]),
        (GroupError, {"groups": 32}, (2, 4, 4, 8), ["32", "8"]),
        (GroupError, {"channels_per_group": 3}, (2, 4, 4, 8), ["3", "8"]),
        (GroupError, {"groups": -1}, (2, 1, 1, 8), ["8", "1x1"]),
        (ArgumentError, {"groups": 2, "axis": 4}, (2, 4, 4, 8), ["4"]),
        (ArgumentError, {"groups": 2}, (2, 4, 4, None), ["None"]),
        (ArgumentError, {"groups": 2, "axis": [1, -1]}, (2, 4, 4, 8), ["[1, -1]"]),
    ],
)
def test_refusals_at_build_name_the_layer(
    error: type[Exception], arguments: dict[str, Any], shape: tuple[int | None, ...], named: list[str]
) -> None:
    layer = GroupNormalization(**arguments, name="stem_norm")
    with pytest.raises(error) as raised:
        layer.build(shape)
    assert all(part in str(raised.value) for part in ["stem_norm", *named])


@pytest.mark.parametrize("epsilon", [0, -1e-3, float("nan")])
def test_an_epsilon_that_is_not_above_zero_is_refused(epsilon: float) -> None:
    with pytest.raises(ArgumentError, match="stem_norm"):
        GroupNormalization(2, epsilon=epsilon, name="stem_norm")


def test_two_ways_of_asking_for_groups_are_refused() -> None:
    with pytest.raises(GroupError, match="channels_per_group=8"):
        GroupNormalization(4, channels_per_group=8)


def test_one_value_per_group_is_refused_when_only_the_call_knows_the_size() -> None:
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, GroupNormalization(-1)(inputs))
    assert model(normal(1, 2, 1, 4)).shape == (1, 2, 1, 4)
    with pytest.raises(GroupError):
        model(normal(1, 1, 1, 4))
