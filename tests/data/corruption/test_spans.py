"""Span corruption: T5's counts, the text back from source and target, rows that fit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.core.special import EXTREME, REGULAR, SEQUENTIAL, sentinels
from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.spans import Denoiser, Spans
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.objective.ul2 import DENOISERS

END, TOP = 256, 399
T5 = [Denoiser(0.15, 3.0)]


def spans(width: int, denoisers=T5, count: int = 100) -> Spans:
    modes = tuple(dict.fromkeys(denoiser.mode for denoiser in denoisers if denoiser.mode))
    return Spans(Vocabulary(400, ByteTokenizer()), width, denoisers, (*sentinels(count), *modes))


def read(batch, row):
    """(source, decoder's input, target) of each document of a row, by plain reading."""
    found = []
    for number in range(1, int(batch["source_segments"][row].max()) + 1):
        source = batch["source"][row][batch["source_segments"][row] == number].tolist()
        here = batch["segments"][row] == number
        found.append((source, batch["tokens"][row][here].tolist(), batch["labels"][row][here].tolist()))
    return found


def restored(source: list[int], target: list[int], low: int) -> tuple[list[int], list[int]]:
    """The text, and the lengths of its missing spans: each sentinel (an id of at least `low`) stands for what follows it in
    the target."""
    assert source[-1] == target[-1] == END
    missing: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= low:
            assert token not in missing
            last = missing.setdefault(token, [])
        else:
            last.append(token)
    text: list[int] = []
    for token in source[:-1]:
        text += missing.pop(token) if token >= low else [token]
    assert not missing
    return text, [len(span) for span in restored_spans(target, low)]


def restored_spans(target, low):
    spans: list[list[int]] = []
    for token in target[:-1]:
        if token >= low:
            spans.append([])
        else:
            spans[-1].append(token)
    return spans


def test_the_lengths_of_the_authors() -> None:
    """512 tokens of the encoder: 568 of the text, 114 of the target (their code's comment), and a quarter for more documents."""
    found = spans(512)
    assert found.raw_length == 568 + 1
    assert found.target_KN[0, 568] == 114
    assert found.source_KN[0, 568] == 512
    assert found.target_width == -(-114 * 5 // 4)


@pytest.mark.parametrize("goes_on", [False, True])
def test_the_text_comes_back(random_rows, texts, goes_on) -> None:
    corruption = spans(96)
    batch = random_rows(corruption.raw_length, 80, mean=30, goes_on=goes_on)
    found = corruption(batch, row_keys(0, np.arange(80)))
    assert found["source"].shape == (80, 96)
    assert found["labels"].shape == (80, corruption.target_width)
    lost = total = 0
    for row in range(80):
        documents = [text for text in texts(batch, row) if len(text) > 1]
        read_back = read(found, row)
        assert len(read_back) <= len(documents)
        for number, (source, tokens, target) in enumerate(read_back):
            text, sizes = restored(source, target, 300)
            whole = documents[number]
            assert text == whole[: len(text)]
            assert tokens == [END, *target[:-1]]
            n = len(text)
            noise = min(max(round(0.15 * n), 1), n - 1)
            count = max(1, round(noise / 3))
            assert sum(sizes) == noise
            assert len(sizes) == min(count, noise, n - noise)
            assert [token for token in source if token >= 300] == [TOP - k for k in range(len(sizes))]
            assert source[0] < 300, "the first part is kept"
            lost += len(whole) - n
        kept = sum(len(restored(source, target, 300)[0]) for source, _, target in read_back)
        if kept < sum(map(len, documents)):
            lost += sum(map(len, documents[len(read_back) :]))
        total += sum(map(len, documents))
    assert lost < 0.08 * total, "only the end of crowded rows gives way"


def test_positions_and_padding(random_rows) -> None:
    corruption = spans(64)
    found = corruption(random_rows(corruption.raw_length, 30), row_keys(0, np.arange(30)))
    for side in ("", "source_"):
        segments, positions = found[f"{side}segments"], found[f"{side}positions"]
        for row in range(30):
            counts = Counter(segments[row].tolist())
            expected = [place for number in sorted(set(counts) - {0}) for place in range(counts[number])]
            assert positions[row].tolist() == expected + [0] * counts[0]
            assert segments[row].tolist() == sorted(segments[row].tolist(), key=lambda number: number or 10**9)
    padding = found["segments"] == 0
    assert (found["labels"][padding] == IGNORE).all()
    assert (found["labels"][~padding] >= 0).all()
    assert (found["source"][found["source_segments"] == 0] == END).all()


def test_rows_of_one_document_are_full(rows) -> None:
    corruption = spans(128)
    found = corruption(rows(corruption.raw_length, [[corruption.raw_length]] * 5), row_keys(0, np.arange(5)))
    assert (found["source_segments"] == 1).all()
    assert (found["segments"] > 0).sum(1).tolist() == [int(corruption.target_KN[0, corruption.raw_length - 1])] * 5


def test_crowded_rows_never_overflow(rows) -> None:
    """Documents of two tokens: each target is as long as its text and an end."""
    corruption = spans(40)
    sizes = [[3] * (corruption.raw_length // 3)] * 4
    found = corruption(rows(corruption.raw_length, sizes), row_keys(0, np.arange(4)))
    for row in range(4):
        assert all(len(source) == 3 and len(target) == 3 for source, _, target in read(found, row))
    assert (found["segments"] > 0).sum(1).tolist() == [corruption.target_width // 3 * 3] * 4


def test_a_document_of_one_token_is_left_out(rows) -> None:
    corruption = spans(20)
    found = corruption(rows(corruption.raw_length, [[2, 2, 6], [1, 1], []]), row_keys(0, np.arange(3)))
    assert [len(read(found, row)) for row in range(3)] == [1, 0, 0]


def test_where_the_spans_are_is_random(rows) -> None:
    corruption = spans(40)
    width = corruption.raw_length
    found = corruption(rows(width, [[width]] * 3000), row_keys(5, np.arange(3000)))
    missing = np.zeros(width)
    lengths: Counter[int] = Counter()
    firsts = []
    for row in range(3000):
        ((source, _, target),) = read(found, row)
        place = 0
        parts = restored_spans(target, 300)
        lengths.update(map(len, parts))
        firsts.append((next(place for place, token in enumerate(source) if token >= 300), len(parts[0])))
        for token in source[:-1]:
            size = len(parts[TOP - token]) if token >= 300 else 1
            missing[place : place + size] += token >= 300
            place += size
    share = missing[: width - 1] / 3000
    assert share[0] == 0
    assert share[-1] == 1, "the authors' cut: a kept part first, a missing one last"
    assert 0.05 < share[1 : width // 2].mean() < 0.2
    assert set(lengths) == set(range(1, 7))  # 7 tokens in 2 spans
    alike = np.mean([place == size for place, size in firsts])
    assert alike < 0.06, "where a span is says nothing about its length"  # 1 / 36, were it 1 / 6 they would be one choice


def test_sentinels_are_enough(rows) -> None:
    corruption = spans(64, count=2)
    found = corruption(rows(corruption.raw_length, [[corruption.raw_length]] * 3), row_keys(0, np.arange(3)))
    for row in range(3):
        ((source, _, target),) = read(found, row)
        assert [token for token in source if token >= 300] == [TOP, TOP - 1]
        assert len(restored(source, target, 300)[0]) == corruption.raw_length - 1


def test_the_seven_denoisers(random_rows, texts) -> None:
    corruption = spans(96, DENOISERS, count=40)
    modes = {TOP - 40: REGULAR, TOP - 41: SEQUENTIAL, TOP - 42: EXTREME}
    low = TOP - 39
    batch = random_rows(corruption.raw_length, 400, mean=80)
    found = corruption(batch, row_keys(0, np.arange(400)))
    seen: Counter[tuple[str, ...]] = Counter()
    for row in range(400):
        documents = [text for text in texts(batch, row) if len(text) > 1]
        for whole, (source, _, target) in zip(documents, read(found, row), strict=False):
            mode = modes[source[0]]
            seen[mode] += 1
            text, sizes = restored(source[1:], target, low)
            assert text == whole[: len(text)]
            n = len(text)
            counts = {(min(max(round(d.rate * n), 1), n - 1), d.mean_span) for d in DENOISERS if d.mode == mode}
            assert sum(sizes) in {noise for noise, _ in counts}
            if mode == SEQUENTIAL:
                assert len(sizes) == 1
                assert source[-2] == TOP, "the end of the text is missing"
    shares = {mode: count / sum(seen.values()) for mode, count in seen.items()}
    assert shares == pytest.approx({REGULAR: 2 / 7, SEQUENTIAL: 1 / 7, EXTREME: 4 / 7}, abs=0.06)


def test_a_target_never_exceeds_the_width() -> None:
    for rate in (0.01, 0.5, 0.9):
        for mean in (1.0, 3.0, 64.0):
            corruption = spans(48, [Denoiser(rate, mean)])
            assert corruption.target_width <= 48
            assert (
                max(corruption.source_KN[0, corruption.raw_length - 1], corruption.target_KN[0, corruption.raw_length - 1]) <= 48
            )
    assert torch.tensor(spans(48).target_KN).diff(dim=1)[:, 2:].min() >= 0
