"""The core without Python, built with the sanitizers: minutes, most of them the compiler's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchfree import _core
from tests.closeness import TOLERANCE

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_the_core_is_right_and_clean_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    flags = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    configure = ["-S", str(ROOT), "-B", str(tmp_path), "-DBATCHFREE_SWEEP=ON", f"-DCMAKE_CXX_FLAGS={flags}"]
    for arguments in (configure, ["--build", str(tmp_path)]):
        done = subprocess.run([sys.executable, "-m", "cmake", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    tolerances = [str(TOLERANCE[name]) for name in ("float32", "float64", "bfloat16", "float16")]
    done = subprocess.run([str(tmp_path / "sweep"), *tolerances], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("sets:")[1].split() == _core.instruction_sets()
