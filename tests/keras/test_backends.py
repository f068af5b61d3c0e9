from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_claim_holds_on(backend: str) -> None:
    """The tests in backend/, in a process of their own: `KERAS_BACKEND=jax pytest tests/keras/backend` by hand."""
    assert run_on(backend) > 50


@pytest.mark.long
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_every_long_claim_holds_on(backend: str) -> None:
    """Every network of keras.applications that has a Batch Norm."""
    assert run_on(backend, "-m", "long") > 30


def run_on(backend: str, *options: str) -> int:
    """How many tests passed; a failure is shown with what pytest printed."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's greeting would bury a failure
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(HERE / "backend")]
    run = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.fail(f"on {backend}, exit status {run.returncode}:\n{run.stdout}\n{run.stderr[-2000:]}", pytrace=False)
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None, run.stdout
    return int(passed[1])


def test_without_keras_the_import_names_the_pip_command() -> None:
    hide = "import sys; sys.modules['keras'] = None\nimport batchfree.keras"
    run = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'batchfree[keras]'" in run.stderr
