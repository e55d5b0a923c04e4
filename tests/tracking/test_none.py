"""tracking=none leaves nothing."""

from __future__ import annotations

from llmfactory.tracking.spec import None_


def test_nothing_is_written(tmp_path):
    tracker = None_().build(tmp_path, {})
    tracker.log(1, {"loss": 1.0})
    tracker.rewind(0)
    tracker.finish({"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
