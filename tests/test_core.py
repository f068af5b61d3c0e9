"""The kernels through their own door, without torch's tensors: every instruction set, layout, type and thread count."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from batchfree import _core, reference
from tests.closeness import TOLERANCE

ACTIVATIONS = [None, "relu", "silu", "gelu", "gelu_tanh"]
ELEMENTS = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Kernel:
    """One configuration of the core, called with and answering in float64 (n, c, s) arrays."""

    dtype: str = "float32"
    channels_last: bool = False
    instruction_set: str = ""
    threads: int = 1
    eps: float = 1e-5

    @property
    def parameter(self) -> type[np.floating[Any]]:
        return np.float64 if self.dtype == "float64" else np.float32

    def stored(self, values: npt.ArrayLike) -> Array:
        """`values` as the kernel reads them; bfloat16 as 16-bit patterns, for NumPy has no such type."""
        array = np.asarray(values, np.float64)
        if self.channels_last:
            array = array.swapaxes(1, 2)
        if self.dtype == "bfloat16":
            bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
            return np.ascontiguousarray(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))
        return np.ascontiguousarray(array.astype(self.dtype))

    def read(self, stored: Array) -> npt.NDArray[np.float64]:
        if self.dtype == "bfloat16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(stored.swapaxes(1, 2) if self.channels_last else stored, np.float64)

    def rounded(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """`values` after a round trip through the element type."""
        return self.read(self.stored(values))

    def nan_like(self, stored: Array) -> Array:
        """Outputs, on a line of the caches as torch's are: only there may large ones go past them."""
        room = np.empty(stored.nbytes + 64, np.uint8)
        begin = -room.ctypes.data % 64
        output = room[begin : begin + stored.nbytes].view(stored.dtype).reshape(stored.shape)
        output[...] = 0x7FC0 if self.dtype == "bfloat16" else np.nan
        return output

    def problem(self, x: Array, groups: int, activation: str | None) -> _core.Problem:
        samples, channels, spatial = x.shape
        number = ACTIVATIONS.index(activation)
        element = ELEMENTS[self.dtype]
        return _core.Problem(
            samples,
            channels,
            spatial,
            groups,
            self.channels_last,
            element,
            int(self.parameter is np.float64),
            number,
            False,
            self.eps,
            self.threads,
            self.instruction_set,
        )

    def run(
        self,
        x: Array,
        groups: int,
        weight: Array | None = None,
        bias: Array | None = None,
        dy: Array | None = None,
        activation: str | None = None,
        residual: Array | None = None,
    ) -> dict[str, npt.NDArray[np.float64]]:
        """y, and the gradients where `dy` is given. Outputs start as NaN, so that a skipped element shows."""
        problem = self.problem(x, groups, activation)
        w, b = (None if p is None else p.astype(self.parameter) for p in (weight, bias))
        stored, skip = self.stored(x), None if residual is None else self.stored(residual)
        y, moments = self.nan_like(stored), np.full((2, x.shape[0] * groups), np.nan)
        _core.forward(problem, at(stored), at(w), at(b), at(skip), at(y), at(moments))
        result = {"y": self.read(y)}
        if dy is not None:
            upstream, dx, sums = (
                self.stored(dy),
                self.nan_like(stored),
                np.full((2, x.shape[1]), np.nan, self.parameter),
            )
            through = self.nan_like(stored) if residual is not None and activation else None
            _core.backward(
                problem, at(upstream), at(stored), at(w), at(b), at(skip), at(moments), at(dx), at(through),
                at(sums[0]), at(sums[1]),
            )  # fmt: skip
            result |= {"input": self.read(dx), "weight": sums[0], "bias": sums[1]}
            if through is not None:
                result["residual"] = self.read(through)
        return result


def at(array: Array | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def normal(*shape: int, seed: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def check_against_reference(
    kernel: Kernel, shape: tuple[int, int, int], groups: int, activation: str | None, with_residual: bool
) -> None:
    x, dy, residual = (kernel.rounded(normal(*shape, seed=seed)) for seed in range(3))
    weight, bias = normal(shape[1], seed=3), normal(shape[1], seed=4)
    skip = residual if with_residual else None
    got = kernel.run(x, groups, weight, bias, dy, activation, skip)
    expected = {
        "y": reference.group_norm(x, groups, weight, bias, kernel.eps, activation=activation, residual=skip),
        **reference.group_norm_backward(
            dy, x, groups, weight, bias, kernel.eps, activation=activation, residual=skip
        )._asdict(),
    }
    for name, values in got.items():
        wanted = expected[name]
        error = np.abs(values - wanted)
        allowed = TOLERANCE[kernel.dtype] * (np.abs(wanted) + np.abs(wanted).max())
        assert np.all(error <= allowed), (name, float(error.max()))  # NaN fails too


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("instruction_set", _core.instruction_sets())
def test_every_kernel_matches_reference(
    instruction_set: str, channels_last: bool, dtype: str, activation: str | None, with_residual: bool
) -> None:
    kernel = Kernel(dtype, channels_last, instruction_set)
    check_against_reference(kernel, (2, 20, 37), 5, activation, with_residual)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("instruction_set", _core.instruction_sets())
def test_sizes_on_both_sides_of_each_vector_length_match_reference(
    instruction_set: str, channels_last: bool, dtype: str
) -> None:
    kernel = Kernel(dtype, channels_last, instruction_set)
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 129):
        check_against_reference(kernel, (1, 6, size), 2, "relu", with_residual=False)
        check_against_reference(kernel, (1, 2 * size, 5), 2, "relu", with_residual=False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 2, 20011), 1), ((1, 3, 9000), 3), ((3, 64, 700), 64), ((1, 512, 33), 8), ((1, 512, 1055), 8)],
)
def test_groups_of_many_chunks_match_reference(channels_last: bool, shape: tuple[int, int, int], groups: int) -> None:
    check_against_reference(Kernel(channels_last=channels_last), shape, groups, "silu", with_residual=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_constant_groups_of_many_chunks_give_bias_to_the_last_bit(channels_last: bool) -> None:
    bias = normal(2, seed=0)
    for tenths in range(1, 40):
        x = np.full((1, 2, 20011), tenths / 10)
        y = Kernel("float64", channels_last).run(x, 1, bias=bias)["y"]
        np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], x.shape), err_msg=str(tenths / 10))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 16, 9001), 1), ((1, 96, 500), 3), ((5, 64, 900), 4), ((17, 8, 700), 8)]
)
def test_bits_do_not_depend_on_the_number_of_threads(
    shape: tuple[int, int, int], groups: int, channels_last: bool, dtype: str
) -> None:
    pytest.importorskip("torch")  # brings the threads
    x, dy, residual = (normal(*shape, seed=seed) for seed in range(3))
    weight, bias = normal(shape[1], seed=3), normal(shape[1], seed=4)
    one, *others = (
        Kernel(dtype, channels_last, threads=threads).run(x, groups, weight, bias, dy, "silu", residual)
        for threads in (1, 2, 3, 7)
    )
    for other in others:
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0, 1e3, 1e4])
def test_an_offset_costs_no_digits(offset: float, channels_last: bool) -> None:
    x = (normal(2, 16, 900, seed=0) + offset).astype(np.float32).astype(np.float64)
    dy, weight, bias = normal(*x.shape, seed=1), normal(16, seed=2), normal(16, seed=3)
    got = Kernel(channels_last=channels_last).run(x, 4, weight, bias, dy, "relu")
    expected = reference.group_norm_backward(dy, x, 4, weight, bias, activation="relu")
    assert np.abs(got["y"] - reference.group_norm(x, 4, weight, bias, activation="relu")).max() <= 1e-5
    assert np.abs(got["input"] - expected.input).max() <= 1e-5
    assert expected.weight is not None
    assert np.abs(got["weight"] - expected.weight).max() <= 1e-5 * np.abs(expected.weight).max()


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_outlying_start_costs_no_digits(channels_last: bool) -> None:
    x = normal(1, 8, 4000, seed=0) + 1000.0
    x[:, :, :64] = 0.0  # a border of zeros: a mean guessed from the first values would be far off
    got = Kernel(channels_last=channels_last).run(x, 2)
    assert np.abs(got["y"] - reference.group_norm(x.astype(np.float32), 2)).max() <= 1e-5


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("scale", [1e18, 1e-18])
def test_huge_and_tiny_values_neither_overflow_nor_vanish(scale: float, channels_last: bool) -> None:
    x = (normal(2, 16, 900, seed=0) * scale).astype(np.float32).astype(np.float64)
    dy = normal(*x.shape, seed=1)
    got = Kernel(channels_last=channels_last).run(x, 4, dy=dy)
    expected = reference.group_norm_backward(dy, x, 4)
    for values, wanted in ((got["y"], reference.group_norm(x, 4)), (got["input"], expected.input)):
        assert np.abs(values - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("channels_last", [False, True])
def test_squares_beyond_float32_are_added_in_double(channels_last: bool) -> None:
    x = (normal(2, 16, 900, seed=0) * 1e30).astype(np.float32).astype(np.float64)
    y = Kernel(channels_last=channels_last).run(x, 4)["y"]
    assert np.abs(y - reference.group_norm(x, 4)).max() <= 1e-5


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("instruction_set", _core.instruction_sets())
def test_nan_and_infinity_pass_through_every_conversion(instruction_set: str, dtype: str) -> None:
    kernel = Kernel(dtype, instruction_set=instruction_set)
    x = normal(4, 4, 19, seed=0)
    clean = kernel.run(x, 2, activation="relu")["y"]
    x[1, 0, 0], x[2, 3, 18] = np.nan, np.inf
    y = kernel.run(x, 2, activation="relu")["y"]
    assert np.isnan(y[1, :2]).all()
    assert np.isnan(y[2, 2:]).all()
    clean_groups = [(0, slice(None)), (3, slice(None)), (1, slice(2, 4)), (2, slice(0, 2))]
    for group in clean_groups:
        np.testing.assert_array_equal(y[group], clean[group])


def test_float16_rounds_as_numpy_does() -> None:
    # Values over the whole range of float16, subnormals and ties included, through the widening and the narrowing.
    bits = np.arange(0, 0x7C00, dtype=np.uint16)
    values = bits.view(np.float16).astype(np.float64)
    count = values.size // 2 * 2
    x = np.stack([values[:count], -values[:count]], axis=0).reshape(1, 2, count)
    for name in _core.instruction_sets():
        kernel = Kernel("float16", instruction_set=name, eps=1.0)
        y = kernel.run(x, 1)["y"]
        expected = reference.group_norm(x, 1, eps=1.0).astype(np.float32).astype(np.float16).astype(np.float64)
        # float32 arithmetic may land on the other side of a tie: one unit in the last place, rarely.
        apart = np.abs(y - expected)
        assert (apart <= np.spacing(np.abs(expected).astype(np.float16))).all()
        assert (apart > 0).mean() < 0.01


def test_an_unknown_instruction_set_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="baseline"):
        Kernel(instruction_set="avx1024").run(normal(1, 2, 3, seed=0), 1)


@pytest.mark.parametrize("name", [*_core.instruction_sets(), "mmx"])
def test_the_environment_forces_an_instruction_set(name: str) -> None:
    code = "from batchfree import _core; print(_core.instruction_set())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "BATCHFREE_ISA": name}, capture_output=True, text=True
    )
    if name in _core.instruction_sets():
        assert done.stdout.strip() == name
    else:
        assert done.returncode != 0
        assert "BATCHFREE_ISA" in done.stderr
        assert "baseline" in done.stderr


def test_the_core_works_without_torch_and_loads_no_threads() -> None:
    code = (
        "import sys, tests.test_core as t; t.Kernel(threads=4).run(t.normal(1, 2, 90000, seed=0), 1)\n"
        "from batchfree import _core; print(_core.threading_runtime(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.parametrize("instruction_set", _core.instruction_sets())
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_a_sample_has_the_same_bits_in_a_batch_that_the_caches_do_not_hold(
    dtype: str, channels_last: bool, instruction_set: str
) -> None:
    kernel = Kernel(dtype, channels_last, instruction_set, threads=2)
    spatial = 25088 // kernel.stored([[[1.0]]]).itemsize  # 0.8 MB a sample
    draw = np.random.default_rng(0).normal
    x, dy, residual = (draw(size=(12, 32, spatial)) for _ in range(3))
    weight, bias = draw(size=32), draw(size=32)
    whole = kernel.run(x, 8, weight, bias, dy, "silu", residual)
    for name in ("y", "input", "residual"):
        alone = [
            kernel.run(x[i : i + 1], 8, weight, bias, dy[i : i + 1], "silu", residual[i : i + 1])[name]
            for i in range(12)
        ]
        np.testing.assert_array_equal(whole[name], np.concatenate(alone))
