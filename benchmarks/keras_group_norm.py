"""Times `batchfree.keras.GroupNormalization` against `keras.layers.GroupNormalization`.

    python -m benchmarks.keras_group_norm --json results.json

One process per backend. Within it every case is checked against the float64 reference, then both layers run in turns,
so that whatever else the machine does falls on both. A training step is the forward pass and the gradients of input,
gamma and beta. Ratios are Keras's time over ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from batchfree import reference

#: (N, H, W, C): the inputs of ResNet-50's norms at 224 pixels, batches 1 to 8.
SHAPES = [
    (1, 112, 112, 64), (8, 112, 112, 64), (1, 56, 56, 256), (4, 56, 56, 64), (8, 56, 56, 64), (2, 28, 28, 512),
    (8, 28, 28, 128), (1, 14, 14, 256), (8, 14, 14, 1024), (1, 7, 7, 2048), (4, 7, 7, 2048),
]  # fmt: skip
GROUPS = 32
MODES = {"tensorflow": ["jit_compile", "graph", "eager"], "jax": ["jit"]}
#: Each layer runs at least this often per case, and for at least this long.
MIN_RUNS, MIN_SECONDS = 15, 1.5

Step = Callable[[], Any]


def main() -> None:
    """Runs every backend, prints a table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--backend", choices=sorted(MODES), help="measure one backend, in this process")
    parser.add_argument(
        "--far-group", type=float, default=0.0, metavar="D", help="add so many deviations to one group of each input"
    )
    arguments = parser.parse_args()
    if arguments.backend:
        result = measure(arguments.backend, arguments.far_group)
    else:
        result = {
            "machine": machine(),
            "rows": [row for backend in MODES for row in in_own_process(backend, arguments.far_group)],
        }
        print_summary(result["rows"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def in_own_process(backend: str, far_group: float) -> list[dict[str, Any]]:
    """The rows of one backend; a process has only one."""
    rows = Path(f"{os.getpid()}-{backend}.rows.json").resolve()
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "benchmarks.keras_group_norm", "--backend", backend, "--json", str(rows)]
    command += ["--far-group", str(far_group)]
    try:
        subprocess.run(command, env=environment, check=True)
        return list(json.loads(rows.read_text())["rows"])
    finally:
        rows.unlink(missing_ok=True)


def measure(backend: str, far_group: float) -> dict[str, Any]:
    """Every case of one backend."""
    rows = []
    for mode in MODES[backend]:
        for shape in SHAPES:
            for pass_, steps in steps_of(backend, mode, shape, far_group).items():
                rows.append({"backend": backend, "mode": mode, "pass": pass_, "shape": shape, **in_turns(steps)})
                print(_line(rows[-1]), flush=True)
    return {"rows": rows}


def steps_of(backend: str, mode: str, shape: tuple[int, ...], far_group: float) -> dict[str, dict[str, Step]]:
    """For "forward" and "training step", what to time for each layer, after both were compared with the reference."""
    import keras

    import batchfree.keras

    generator = np.random.default_rng(0)
    x, upstream = (generator.normal(size=shape).astype("float32") for _ in range(2))
    x[0, ..., : shape[-1] // GROUPS] += far_group
    gamma, beta = (generator.normal(size=shape[-1]).astype("float32") for _ in range(2))
    steps: dict[str, dict[str, Step]] = {"forward": {}, "training step": {}}
    for name, kind in (("keras", keras.layers.GroupNormalization), ("ours", batchfree.keras.GroupNormalization)):
        layer = kind(GROUPS)
        layer.build(shape)
        layer.set_weights([gamma, beta])
        build = {"tensorflow": tensorflow_steps, "jax": jax_steps}[backend]
        steps["forward"][name], steps["training step"][name] = build(layer, mode, x, upstream)
        check(steps["forward"][name](), steps["training step"][name](), x, upstream, gamma, beta)
    return steps


def tensorflow_steps(layer: Any, mode: str, x: Any, upstream: Any) -> tuple[Step, Step]:
    """The layer's forward pass and training step in TensorFlow."""
    import tensorflow as tf

    x, upstream = tf.constant(x), tf.constant(upstream)

    def step(x: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, [x, layer.gamma.value, layer.beta.value], output_gradients=upstream)

    def compiled(function: Any) -> Any:
        if mode == "eager":
            return function
        return tf.function(function, jit_compile=mode == "jit_compile", autograph=False, reduce_retracing=True)

    forward, training = compiled(lambda x: layer(x)), compiled(step)
    return lambda: forward(x), lambda: training(x, upstream)


def jax_steps(layer: Any, mode: str, x: Any, upstream: Any) -> tuple[Step, Step]:
    """The layer's forward pass and training step in JAX, compiled."""
    import jax

    x, upstream = jax.numpy.asarray(x), jax.numpy.asarray(upstream)
    parameters = [layer.gamma.value, layer.beta.value]

    def forward(x: Any, parameters: Any) -> Any:
        return layer.stateless_call(parameters, [], x)[0]

    def step(x: Any, parameters: Any, upstream: Any) -> Any:
        _, pullback = jax.vjp(forward, x, parameters)
        slope, (gamma, beta) = pullback(upstream)
        return slope, gamma, beta

    run, train = jax.jit(forward), jax.jit(step)
    return (
        lambda: jax.block_until_ready(run(x, parameters)),
        lambda: jax.block_until_ready(train(x, parameters, upstream)),
    )


def check(y: Any, slopes: Any, x: Any, upstream: Any, gamma: Any, beta: Any) -> None:
    """The gate: no time is reported for a result that is not the specification's."""
    moved, pulled = np.moveaxis(x, -1, 1), np.moveaxis(upstream, -1, 1)
    wanted = reference.group_norm_backward(pulled, moved, GROUPS, gamma, beta, 1e-3)
    exact = np.moveaxis(reference.group_norm(moved, GROUPS, gamma, beta, 1e-3), 1, -1)
    expected = [exact, np.moveaxis(wanted.input, 1, -1), wanted.weight, wanted.bias]
    for got, right in zip([y, *slopes], expected, strict=True):
        assert right is not None
        error = np.abs(np.asarray(got, np.float64) - right).max() / np.abs(right).max()
        assert error < 1e-4, f"off by {error:.2g} of the largest value"


def in_turns(steps: dict[str, Step]) -> dict[str, Any]:
    """Milliseconds per call of each layer (median and quartiles) and the median of the paired ratios."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    began = time.perf_counter()
    while len(times["ours"]) < MIN_RUNS or time.perf_counter() - began < MIN_SECONDS:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append((time.perf_counter() - start) * 1e3)
    ratios = np.array(times["keras"]) / np.array(times["ours"])
    quartiles = {
        f"{name}_ms": [round(float(q), 4) for q in np.quantile(t, [0.25, 0.5, 0.75])] for name, t in times.items()
    }
    return {
        **quartiles,
        "runs": len(ratios),
        "ratio": [round(float(q), 3) for q in np.quantile(ratios, [0.25, 0.5, 0.75])],
    }


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    from importlib.metadata import version

    packages = ("batchfree", "keras", "jax", "jaxlib", "numpy")
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "tensorflow": _tensorflow_version(),
        "threads": "the backends' defaults",
    }


def _tensorflow_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("tensorflow", "tensorflow-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _line(row: dict[str, Any]) -> str:
    shape = "x".join(map(str, row["shape"]))
    keras, ours = row["keras_ms"][1], row["ours_ms"][1]
    low, ratio, high = row["ratio"]
    label = f"{row['backend']} {row['mode']}"
    return (
        f"{label:24} {row['pass']:14} {shape:16} keras {keras:8.2f} ms, ours {ours:8.2f} ms, "
        f"ratio {ratio:.2f} ({low:.2f} to {high:.2f})"
    )


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Geometric mean and smallest ratio of every backend, mode and pass."""
    for key in dict.fromkeys((row["backend"], row["mode"], row["pass"]) for row in rows):
        ratios = np.array([row["ratio"][1] for row in rows if (row["backend"], row["mode"], row["pass"]) == key])
        print(f"{' '.join(key):36} geometric mean {np.exp(np.log(ratios).mean()):.2f}, smallest {ratios.min():.2f}")


if __name__ == "__main__":
    main()
