"""report.html: one file, everything escaped, curves drawn from metrics.csv, nothing fetched from anywhere."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from llmfactory.run.curves import curves, parallel_coordinates
from llmfactory.run.figures import figures
from llmfactory.run.folder import write_config, write_result
from llmfactory.run.report import write_report
from llmfactory.tracking.csv import CsvTracker

RESULT = {
    "stage": "pretrain",
    "status": "finished",
    "held_out_loss": 3.0714,
    "perplexity": 21.57,
    "bits_per_byte": 2.113,
    "gzip_bits_per_byte": 2.36,
    "xz_bits_per_byte": 1.84,
    "tokens_per_second": 24012.3,
    "mfu": 0.412,
    "peak_flops": 2.1e11,
    "parameters": 4213760,
    "step": 600,
    "best_loss": 3.05,
    "best_step": 500,
    "skipped_steps": 0,
    "seconds": 171.3,
    "train_seconds": 140.2,
    "sample": {"prompt": "def <b>", "text": "(x) & y</pre>"},
    "environment": {"python": "3.11.7", "git": None},
}


class Page(HTMLParser):
    """Tags and visible text, insisting that what is opened is closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "link"})

    def __init__(self, text: str) -> None:
        HTMLParser.__init__(self)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "<script>alert(1)</script>".replace("/", "-")
    folder.mkdir()
    tracker = CsvTracker(folder)
    for step in range(10, 110, 10):
        tracker.log(step, {"loss": 5 * math.exp(-step / 50), "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 2e4 + step})
    tracker.log(100, {"held_out_loss": 1.5})
    write_config(
        folder, {"data": {"source": {"files": ["<i>a</i>.txt"]}}}, ["optim.lr=1e-3", "stage.sample_prompt='</pre><script>'"]
    )
    write_result(folder, RESULT)
    return folder


def test_the_page_is_well_formed_self_contained_and_escaped(folder):
    write_report(folder)
    text = (folder / "report.html").read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 4
    assert "script" not in tags
    assert "link" not in tags
    assert "img" not in tags
    assert "i" not in tags
    for _, attributes in page.tags:
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    for shown in (
        "3.0714",
        "21.57",
        "2.113",
        "gzip -9 2.360",
        "24,012",
        "41.2%",
        "4,213,760",
        "optim.lr=1e-3",
        "<i>a</i>.txt",
        "3.11.7",
    ):
        assert shown in page.text, shown
    assert "def <b>(x) & y</pre>" in page.text
    assert "</pre><script>" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    clips = [
        name
        for name in ids
        if name and not name.startswith(("figure", "axes", "line2d", "patch", "text", "matplotlib", "xtick", "ytick", "legend"))
    ]
    assert len(clips) == len(set(clips)), "plots of one page must not share clip paths"


def test_a_run_without_metrics_or_that_failed_has_a_page_too(folder):
    (folder / "metrics.csv").unlink()
    write_result(folder, {"status": "failed", "error": "the disk <is> full"})
    write_report(folder)
    page = Page((folder / "report.html").read_text())
    assert "svg" not in [tag for tag, _ in page.tags]
    assert "the disk <is> full" in page.text


def test_what_was_measured_of_messages_is_shown(folder):
    point = {"bytes": 1024, "bus_bandwidth_bytes_per_s": 2e9}
    axes = {"tp": {"processes": 4, "collectives": {"all_reduce": {"points": [point, {**point, "bytes": 2**20}]}}}}
    write_result(folder, {"stage": "bench_comm", "communication": axes, "table": "operation <bytes>"})
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "Bus bandwidth, tp: 4 processes" in page
    assert "<pre>operation &lt;bytes&gt;</pre>" in page


def test_the_same_metrics_draw_the_same_page(folder):
    write_report(folder)
    first = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == first


def test_figures_leave_out_what_a_job_has_not():
    assert figures({"status": "finished", "seconds": 3.0}) == []
    rows = {what: (figure, remark) for what, figure, remark in figures({**RESULT, "skipped_steps": 3, "xz_bits_per_byte": None})}
    assert rows["bits per byte"] == ("2.113", "beside gzip -9 2.360")
    assert rows["skipped steps"][0] == "3"
    assert rows["optimizer steps"] == ("600", "lowest held-out loss on the way: 3.0500 at step 500")
    assert rows["time"] == ("2:51", "training took 2:20")
    assert "skipped steps" not in {what for what, _, _ in figures(RESULT)}


def test_a_curve_survives_what_is_not_finite():
    svg = curves("Loss", {"training": ([1, 2, 3, 4], [3.0, math.nan, math.inf, 1.0])}, "step")
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")


def test_parallel_coordinates_of_numbers_words_and_a_failure():
    columns = {"optim.lr": [1e-4, 1e-2, 1e-3], "model": ["a<b", "b", "a<b"], "held_out_loss": [3.0, 2.0, math.nan]}
    svg = parallel_coordinates(columns, "held_out_loss")
    assert "a&lt;b" in svg
    assert "0.0001" in svg
    assert "optim.lr" in svg
    assert parallel_coordinates({"x": [1.0], "loss": [2.0]}, "loss").startswith("<svg")
