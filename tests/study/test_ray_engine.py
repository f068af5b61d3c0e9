from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchfree.errors import StudyError
from batchfree.study import Progress, RayEngine, Study, load_study, run_study
from batchfree.study import _ray_engine as ray_module
from tests.study.processes import cell_numbers, cell_processes


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without processors, to which nodes are added; all of it ends with the test."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the cluster's token there
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray.cluster_utils

    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_study_that_was_stopped_and_lost_a_node_ends_with_the_bytes_of_a_local_one(
    cluster: Any, tmp_path: Path
) -> None:
    study = _two_cells()
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    out = tmp_path / "ray"

    def interrupt(progress: Progress) -> None:
        if _epochs(out) and min(_epochs(out)) > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, out, engine=RayEngine(cluster.address, cpus_per_cell=1), on_progress=interrupt)
    assert not cell_processes(out)
    assert len(list(out.rglob("checkpoint.safetensors"))) == 2
    logs = sorted(out.rglob("log.txt"))
    starts = [log.read_text().count("$ ") for log in logs]
    before = _epochs(out)

    def lose_a_node(progress: Progress) -> None:
        if len(nodes) == 2 and all(now > then for now, then in zip(_epochs(out), before, strict=True)):
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    run_study(study, out, engine=RayEngine(cluster.address, cpus_per_cell=1), on_progress=lose_a_node)
    assert len(nodes) == 1
    assert sorted(log.read_text().count("$ ") - start for log, start in zip(logs, starts, strict=True)) == [1, 2]
    assert sorted(log.read_text().count("going on from step") for log in logs) == [1, 2]
    run_study(study, tmp_path / "local", jobs=2)
    assert cell_numbers(out) == cell_numbers(tmp_path / "local")


def test_a_cluster_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_module, "ANSWER_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StudyError, match="ray start --head"):
            RayEngine(address, cpus_per_cell=1)
    with pytest.raises(StudyError, match="refused"):
        RayEngine(address, cpus_per_cell=1)
    with pytest.raises(StudyError, match="--cpus-per-cell 1"):
        RayEngine(None, cpus_per_cell=0)


def _two_cells() -> Study:
    # long enough that neither is done while the other still imports torch on a busy machine
    overrides = {"norm": ["gn"], "norm_batch": [4], "train_images": 160, "epochs": 80, "seeds": 2}
    return load_study("norm-batch", overrides=overrides)


def _epochs(out: Path) -> list[int]:
    """Finished epochs of each cell that began."""
    return [path.read_bytes().count(b"\n") for path in sorted(out.rglob("metrics.jsonl"))]
