"""What holds of every corruption: a row's task depends on its key alone, held-out rows never change, padding has no target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmfactory.config.register import classes
from llmfactory.core.batch import IGNORE
from llmfactory.core.spec import stem
from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.corruption import CorruptedRows, Corruption
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.loader import StepLoader, held_out_batches
from llmfactory.data.pack.spec import Concat, Document
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokens import TokenFile
from llmfactory.objective.objective import Objective
from llmfactory.objective.spec import BlankInfilling, Denoising, Masked, ObjectiveSpec, Prefix

SPECS = [cls() for name, cls in classes("stage/objective").items() if not name.endswith("_spec")]
SPECS += [
    Masked(whole_words=True),
    Denoising(rotate=0.5),
    BlankInfilling(sentence_share=0.3, document_share=0.3),
]


CORRUPTING = [spec for spec in SPECS if not spec.labelled and type(spec.build()).corruption is not Objective.corruption]


def token_file(folder: Path) -> TokenFile:
    """Documents of letters."""
    numbers = np.random.default_rng(0)
    stream, offsets = [256], [0]
    for length in (9, 40, 3, 17, 80, 1, 33, 60, 25):
        stream += [*numbers.integers(97, 123, length).tolist(), 256]
        offsets.append(len(stream) - 1)
    np.array(stream, "<u2").tofile(folder / "x.bin")
    np.array(offsets, "<i8").tofile(folder / "x.offsets")
    return TokenFile(folder / "x.bin", folder / "x.offsets", np.dtype("<u2"), 256)


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return token_file(tmp_path)


@pytest.fixture(params=CORRUPTING, ids=lambda spec: str(spec)[:60])
def corruption(request: pytest.FixtureRequest, tmp_path: Path) -> Corruption:
    found = request.param.build().corruption(Vocabulary(400, ByteTokenizer(), [token_file(tmp_path)]), 48)
    assert found is not None
    return found


def test_all_objectives_that_change_rows_are_here() -> None:
    assert {stem(type(spec)) for spec in CORRUPTING} >= {
        "prefix",
        "masked",
        "span_corruption",
        "ul2",
        "denoising",
        "permutation",
        "blank_infilling",
        "replaced_token",
    }


def test_a_row_depends_on_its_key_alone(corruption, random_rows) -> None:
    batch, keys = random_rows(corruption.raw_length, 12), row_keys(0, np.arange(12))
    whole = corruption(batch, keys)
    for row in range(12):
        alone = corruption({name: field[row : row + 1] for name, field in batch.items()}, keys[row : row + 1])
        for name, field in whole.items():
            assert torch.equal(alone[name][0], field[row]), name
    backwards = corruption({name: field.flip(0) for name, field in batch.items()}, keys[::-1])
    assert all(torch.equal(backwards[name].flip(0), field) for name, field in whole.items())
    other = corruption(batch, row_keys(1, np.arange(12)))
    assert any(not torch.equal(other[name], field) for name, field in whole.items())


def test_it_changes_nothing_of_what_it_is_given(corruption, random_rows) -> None:
    batch = random_rows(corruption.raw_length, 6)
    before = {name: field.clone() for name, field in batch.items()}
    corruption(batch, row_keys(0, np.arange(6)))
    assert all(torch.equal(batch[name], field) for name, field in before.items())


def test_padding_has_no_target(corruption, random_rows, rows) -> None:
    found = corruption(random_rows(corruption.raw_length, 20), row_keys(0, np.arange(20)))
    assert (found["labels"][found["segments"] == 0] == IGNORE).all()
    assert (found["labels"] != IGNORE).any()
    empty = corruption(rows(corruption.raw_length, [[], []]), row_keys(0, np.arange(2)))
    assert (empty["labels"] == IGNORE).all()
    assert all(field.shape[0] == 2 for field in empty.values())
    assert {name: field.shape[1:] for name, field in empty.items()} == {name: field.shape[1:] for name, field in found.items()}


def test_ids_are_in_the_vocabulary(corruption, random_rows) -> None:
    found = corruption(random_rows(corruption.raw_length, 20), row_keys(0, np.arange(20)))
    for name in ("tokens", "source", "labels"):
        if name in found:
            kept = found[name][found[name] != IGNORE]
            assert kept.min() >= 0
            assert kept.max() < 400
            assert found[name].dtype == torch.int64


def test_rows_are_as_wide_as_the_model_s(corruption, random_rows) -> None:
    found = corruption(random_rows(corruption.raw_length, 3), row_keys(0, np.arange(3)))
    assert found.get("source", found["tokens"]).shape == (3, 48)
    assert found["tokens"].shape[1] <= 48
    assert found["positions"].max() < 48


@pytest.mark.parametrize("pack", [Concat(), Concat(isolate=False), Document()], ids=["concat", "one text", "document"])
def test_training_sees_other_masks_each_epoch_and_any_split_sees_the_same(file, vocabulary, pack) -> None:
    corruption = Masked().build().corruption(vocabulary, 24)
    rows = CorruptedRows(pack.build(file, 24), corruption, seed=5)
    assert rows.isolated

    def steps(count: int, **settings: int) -> list[dict[str, torch.Tensor]]:
        loader = iter(StepLoader(rows, batch_size=len(rows), seed=5, **settings))
        return [next(loader) for _ in range(count)]

    epochs = steps(2)
    order = StepLoader(rows, batch_size=len(rows), seed=5)
    by_row = [dict(zip(order.sample_ids(epoch).tolist(), epochs[epoch]["labels"].tolist(), strict=True)) for epoch in (0, 1)]
    assert sum(by_row[0][row] != by_row[1][row] for row in by_row[0]) > len(rows) // 2
    parts = [steps(2, rank=rank, world=3) for rank in range(3)]
    for step in range(2):
        for name, field in epochs[step].items():
            assert torch.equal(torch.cat([part[step][name] for part in parts]), field)
    assert torch.equal(steps(1, start_step=1)[0]["tokens"], epochs[1]["tokens"]), "a resumed run"


def test_static_masks_stay(file, vocabulary) -> None:
    rows = CorruptedRows(Concat().build(file, 24), Masked(static=True).build().corruption(vocabulary, 24), seed=5)
    loader = StepLoader(rows, batch_size=len(rows), seed=5)
    first, second = (
        dict(zip(loader.sample_ids(i).tolist(), b["labels"].tolist(), strict=True))
        for i, b in zip(range(2), loader, strict=False)
    )
    assert first == second
    other = CorruptedRows(Concat().build(file, 24), Masked(static=True).build().corruption(vocabulary, 24), seed=6)
    assert rows.draw(np.arange(4), np.arange(4))["labels"].tolist() != other.draw(np.arange(4), np.arange(4))["labels"].tolist()


@pytest.mark.parametrize("spec", [Masked(), Prefix(), Denoising(), BlankInfilling()], ids=lambda spec: stem(type(spec)))
def test_held_out_rows_are_those_of_every_run(file, vocabulary, spec: ObjectiveSpec) -> None:
    corruption = spec.build().corruption(vocabulary, 24)
    runs = [CorruptedRows(Concat().build(file, corruption.raw_length), corruption, seed=seed) for seed in (0, 1)]
    one, other = (torch.cat([b["labels"] for b in held_out_batches(rows, batch_size=4)]) for rows in runs)
    assert torch.equal(one, other)
    parts = [list(held_out_batches(runs[0], batch_size=4, rank=rank, world=3)) for rank in range(3)]
    counts = sum(int((batch["labels"] != IGNORE).sum()) for part in parts for batch in part)
    assert counts == int((one != IGNORE).sum()), "a rank without a row adds nothing"


def test_a_rank_without_a_row_reads_padding(file, vocabulary) -> None:
    corruption = next(spec for spec in SPECS if stem(type(spec)) == "span_corruption").build().corruption(vocabulary, 24)
    rows = CorruptedRows(Concat().build(file, corruption.raw_length), corruption, seed=0)
    last = next(iter(held_out_batches(rows, batch_size=2, rank=0, world=2, limit=1)))
    empty = next(iter(held_out_batches(rows, batch_size=2, rank=0, world=4, limit=1)))
    assert (last["labels"] != IGNORE).any() or (empty["labels"] == IGNORE).all()
    for name in ("segments", "source_segments", "positions", "source_positions"):
        assert not empty[name].any()
    assert (empty["labels"] == IGNORE).all()
