"""What the tests of this folder share: the two kinds of autograd nodes."""

from __future__ import annotations

import pytest

from batchfree.torch import _compiled_nodes


@pytest.fixture(params=["compiled nodes", "Python nodes"])
def each_kind_of_nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with either."""
    if request.param == "Python nodes":
        monkeypatch.setattr(_compiled_nodes, "nodes", None)
    else:
        assert _compiled_nodes.nodes is not None, _compiled_nodes.reason_against
