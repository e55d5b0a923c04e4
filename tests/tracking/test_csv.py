"""metrics.csv: exact numbers, one row a step, rewinding, growing columns, and what a crash leaves."""

from __future__ import annotations

import math

import pytest

from llmfactory.core.errors import UserError
from llmfactory.tracking.csv import CsvTracker, read_metrics
from llmfactory.tracking.spec import Csv


def text(folder):
    return (folder / "metrics.csv").read_text()


def test_rows_are_on_disk_at_once_and_numbers_come_back_exactly(tmp_path):
    tracker = Csv().build(tmp_path, {})
    tracker.log(10, {"loss": 1 / 3, "lr": 1e-07})
    assert text(tmp_path) == "step,loss,lr\n10,0.3333333333333333,1e-07\n"
    tracker.log(20, {"loss": math.nan, "lr": 2e-07})
    assert float(read_metrics(tmp_path / "metrics.csv")[0]["loss"]) == 1 / 3
    assert text(tmp_path).endswith("20,nan,2e-07\n")


def test_several_calls_for_a_step_make_one_row_and_new_metrics_add_columns(tmp_path):
    tracker = CsvTracker(tmp_path)
    tracker.log(1, {"loss": 4.0})
    tracker.log(2, {"loss": 3.0})
    tracker.log(2, {"held_out_loss": 3.5})
    tracker.log(2, {"loss": 3.25})
    tracker.log(3, {"loss": 2.0})
    assert text(tmp_path) == "step,loss,held_out_loss\n1,4.0,\n2,3.25,3.5\n3,2.0,\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_rewind_drops_what_will_be_done_again_and_a_new_tracker_goes_on(tmp_path):
    first = CsvTracker(tmp_path)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    second = CsvTracker(tmp_path)
    second.rewind(2)
    second.log(3, {"loss": 30.0})
    assert text(tmp_path) == "step,loss\n1,1.0\n2,2.0\n3,30.0\n"
    second.rewind(0)
    assert text(tmp_path) == "step,loss\n"


def test_half_a_last_line_is_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,1.0\n2,0.")
    tracker = CsvTracker(tmp_path)
    tracker.log(2, {"loss": 0.5})
    assert text(tmp_path) == "step,loss\n1,1.0\n2,0.5\n"


def test_an_unwritable_file_is_named(tmp_path):
    tracker = CsvTracker(tmp_path)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(UserError, match=r"metrics\.csv cannot be written"):
        tracker.log(1, {})
