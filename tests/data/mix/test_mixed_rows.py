"""Rows of several sources: read as they are, the same samples under every layout, shares counted in tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from llmfactory.core.batch import split
from llmfactory.core.errors import UserError
from llmfactory.core.sizes import Sizes
from llmfactory.data import loader as loader_module
from llmfactory.data.corruption.corruption import CorruptedRows, Corruption
from llmfactory.data.loader import StepLoader
from llmfactory.data.mix.mixed_rows import MixedRows
from llmfactory.data.mix.spec import ByTokens, Curriculum, Fixed, FromFile, MixSpec
from llmfactory.data.pack.spec import BestFit, Concat, Document, PackSpec
from llmfactory.data.tokens import TokenFile

T, BATCH, STEPS = 8, 6, 40
LENGTHS = {"web": [30, 2, 9, 60, 1, 14] * 6, "code": [40, 12, 3] * 4, "books": [200]}
CURRICULUM = Curriculum(at=[0.0, 0.6], weights={"web": [3, 0], "code": [1, 1], "books": [0, 2]}, max_epochs={"code": 2.5})
LAYOUTS = {
    "one process, the batch at once": (1, None, [0]),
    "two processes, row by row": (2, 1, [0]),
    "three processes, two rows at a time": (3, 2, [0]),
    "four processes, resumed twice": (4, None, [0, 13, 30]),
    "two processes, resumed under three": (2, 1, [0, 17]),
}
"""Processes, rows of a micro-batch, steps at which a run begins or is resumed."""


@pytest.fixture
def files(token_file: Callable[..., TokenFile]) -> dict[str, TokenFile]:
    return {name: token_file(lengths) for name, lengths in LENGTHS.items()}


def mixed(files: dict[str, TokenFile], mix: MixSpec, pack: PackSpec | None = None, steps: int = STEPS) -> MixedRows:
    return MixedRows({name: (pack or Concat()).build(file, T) for name, file in files.items()}, mix, steps, Sizes([(0, BATCH)]))


def samples(rows: MixedRows, world: int, micro: int | None, starts: list[int]) -> list[list[list[int]]]:
    """Rows of tokens of every step, as the processes read them one after the other."""
    seen: list[list[list[int]]] = []
    for turn, (start, stop) in enumerate(zip(starts, [*starts[1:], STEPS], strict=True)):
        size = world + turn if turn else world  # another number of processes after each resume
        loaders = [
            iter(StepLoader(rows, batch_size=BATCH, seed=5, rank=rank, world=size, start_step=start)) for rank in range(size)
        ]
        for _ in range(start, stop):
            pieces = [piece for loader in loaders for piece in split(next(loader), micro)]
            seen.append([row for piece in pieces for row in piece["tokens"].tolist()])
    return seen


@pytest.mark.parametrize(
    "mix", [Fixed(weights={"web": 2, "code": 1, "books": 1}), ByTokens(temperature=3.0), CURRICULUM], ids=repr
)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_sees_the_same_samples(
    files: dict[str, TokenFile], mix: MixSpec, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "AHEAD", 30)
    rows = mixed(files, mix)
    whole = StepLoader(rows, batch_size=BATCH, seed=5)
    expected = [rows.read(whole.sample_ids(step))["tokens"].tolist() for step in range(STEPS)]
    assert samples(rows, *LAYOUTS[layout]) == expected


@pytest.mark.parametrize("pack", [Concat(), Concat(isolate=False), BestFit(), Document()], ids=repr)
def test_each_row_is_that_of_its_source(files: dict[str, TokenFile], pack: PackSpec) -> None:
    rows = mixed(files, ByTokens(), pack)
    assert len(rows) == sum(len(part) for part in rows.sources.values())
    assert rows.targets == sum(file.targets for file in files.values())
    every = [part.read(np.arange(len(part))) for part in rows.sources.values()]
    order = np.random.default_rng(0).permutation(len(rows))
    for chosen in (order, order[:1], np.arange(len(rows))):
        batch = rows.read(chosen)
        for name, field in batch.items():
            assert torch.equal(field, torch.cat([one[name] for one in every])[chosen]), name
            assert field.is_contiguous()
    for wrong in ([-1], [len(rows)]):
        with pytest.raises(IndexError):
            rows.read(np.array(wrong))


def test_masks_of_some_sources(token_file: Callable[..., TokenFile]) -> None:
    mask = np.random.default_rng(0).integers(0, 2, 41 + 7 + 1).tolist()
    rows = mixed({"web": token_file([20, 9]), "chat": token_file([40, 6], mask=mask)}, ByTokens())
    every = torch.cat([part.read(np.arange(len(part)))["labels"] for part in rows.sources.values()])
    order = np.random.default_rng(1).permutation(len(rows))
    assert torch.equal(rows.read(order)["labels"], every[order])
    assert int((every != -100).sum()) == rows.targets


@pytest.mark.parametrize("pack", [Concat(), Document()], ids=repr)
def test_weights_are_shares_of_tokens(files: dict[str, TokenFile], pack: PackSpec) -> None:
    """Also where rows of a source are half padding."""
    weights = {"web": 0.5, "code": 0.3, "books": 0.2}
    loader = StepLoader(mixed(files, Fixed(weights=weights), pack, 2000), batch_size=BATCH, seed=0)
    shares = np.array([loader.drawn(2000)[f"tokens/{name}"] for name in weights])
    assert (shares / shares.sum()).tolist() == pytest.approx(list(weights.values()), abs=1e-3)
    real = np.zeros(3)
    last = np.cumsum([len(part) for part in loader.rows.sources.values()])
    for step in range(2000):
        rows = loader.sample_ids(step)
        read = (loader.rows.read(rows)["segments"] > 0).sum(1).numpy()
        real += np.bincount(last.searchsorted(rows, side="right"), weights=read, minlength=3)
    assert (real / real.sum()).tolist() == pytest.approx(list(weights.values()), abs=3e-3)
    assert real.tolist() == pytest.approx(shares.tolist(), rel=0.01)


def test_tokens_and_epochs_of_each_source_at_a_step(files: dict[str, TokenFile]) -> None:
    loader = StepLoader(mixed(files, CURRICULUM), batch_size=BATCH, seed=0)
    rows = {name: len(part) for name, part in loader.rows.sources.items()}
    for steps in (0, 1, 7, STEPS):
        ids = np.concatenate([np.zeros(0, np.int64), *(loader.sample_ids(step) for step in range(steps))])
        counts = np.bincount(np.cumsum(list(rows.values())).searchsorted(ids, side="right"), minlength=3)
        found = loader.drawn(steps)
        for (name, size), count in zip(rows.items(), counts.tolist(), strict=True):
            assert found[f"epochs/{name}"] == pytest.approx(count / size)
            assert found[f"tokens/{name}"] == round(count * files[name].inputs / size)
    assert loader.drawn(STEPS)["epochs/code"] <= 2.5
    alone = StepLoader(Concat().build(files["web"], T), batch_size=BATCH, seed=0)
    assert alone.drawn(5) == {}


@pytest.mark.parametrize(
    "mix",
    [
        Fixed(max_epochs={"code": 1.5}),
        ByTokens(max_epochs={"code": 1.5}),
        Curriculum(at=[0.0], weights={name: [1.0] for name in LENGTHS}, max_epochs={"code": 1.5}),
        "from_file",
    ],
    ids=lambda mix: type(mix).__name__,
)
def test_a_source_is_read_no_oftener_than_it_may_be(files: dict[str, TokenFile], mix: MixSpec | str, tmp_path: Path) -> None:
    if isinstance(mix, str):
        (tmp_path / "w.json").write_text('{"weights": {"web": 1, "code": 1, "books": 1}}')
        mix = FromFile(file=str(tmp_path / "w.json"), max_epochs={"code": 1.5})
    loader = StepLoader(mixed(files, mix), batch_size=BATCH, seed=0)
    size = len(loader.rows.sources["code"])
    epochs = [loader.drawn(steps)["epochs/code"] for steps in (1, 10, 100, 1000)]
    assert epochs == sorted(epochs)
    assert epochs[-1] == int(1.5 * size) / size


def test_a_curriculum_goes_by_steps(files: dict[str, TokenFile]) -> None:
    order = mixed(files, CURRICULUM, steps=4000).order(0)
    half = Curriculum(at=[0.0, 0.6], weights=CURRICULUM.weights, max_epochs=CURRICULUM.max_epochs, horizon=8000)
    assert order.drawn(1000 * BATCH)[2] > 0
    assert mixed(files, half, steps=4000).order(0).course.begin_K[-1] > order.course.begin_K[-1]
    assert mixed(files, half, steps=8000).order(0).drawn(999).tolist() == mixed(files, half, steps=5).order(0).drawn(999).tolist()


def test_weights_change_with_the_samples_of_each_step(files: dict[str, TokenFile]) -> None:
    """Half of what source web would get at its first weight, because it goes down to 0 until the run's end."""
    mix = Curriculum(at=[0.0, 1.0], weights={"web": [1.0, 0.0], "code": [0.0, 1.0], "books": [0.0, 0.0]})
    drawn = mixed(files, mix, steps=1000).order(0).drawn(1000 * BATCH)
    assert drawn[0] == pytest.approx(1000 * BATCH / 2, rel=0.02)
    assert mixed(files, mix, steps=1000).order(0).drawn(100 * BATCH)[0] == pytest.approx(0.95 * 100 * BATCH, rel=0.02)


def test_another_source_moves_none_of_the_others_rows(files: dict[str, TokenFile]) -> None:
    def rows_of(rows: MixedRows, name: str) -> list[int]:
        number = list(rows.sources).index(name)
        drawn = rows.order(3)(np.arange(2000))
        first = int(rows.first_S[number])
        return [row - first for row in drawn.tolist() if first <= row < int(rows.last_S[number])][:100]

    few = mixed({name: files[name] for name in ("code", "web")}, Fixed())
    assert [rows_of(mixed(files, Fixed()), name) for name in ("web", "code")] == [rows_of(few, name) for name in ("web", "code")]
    assert rows_of(few, "web") != rows_of(mixed({"code": files["web"], "web": files["code"]}, Fixed()), "code")


class Reversed(Corruption):
    raw_length = T

    def __call__(self, batch: dict[str, torch.Tensor], keys_B: object) -> dict[str, torch.Tensor]:
        return {name: field.flip(1) for name, field in batch.items()}


def test_corrupted_rows_keep_sources_and_order(files: dict[str, TokenFile]) -> None:
    rows = mixed(files, ByTokens())
    corrupted = CorruptedRows(rows, Reversed(), 3)
    plain, other = (StepLoader(one, batch_size=BATCH, seed=1) for one in (rows, corrupted))
    assert [other.sample_ids(step).tolist() for step in range(9)] == [plain.sample_ids(step).tolist() for step in range(9)]
    assert other.drawn(9) == plain.drawn(9) != {}
    for one, two in islice(zip(plain, other, strict=False), 3):
        assert torch.equal(one["tokens"].flip(1), two["tokens"])


def test_what_cannot_be_drawn(files: dict[str, TokenFile], token_file: Callable[..., TokenFile]) -> None:
    with pytest.raises(UserError, match="'empty' has nothing to train on, and a weight"):
        mixed({**files, "empty": token_file([])}, Fixed()).order(0)
    weights = dict.fromkeys(files, 1.0)
    order = mixed({**files, "empty": token_file([])}, Fixed(weights={**weights, "empty": 0})).order(0)
    assert order.drawn(10_000)[3] == 0
    with pytest.raises(UserError, match="used up after"):
        mixed(files, Fixed(max_epochs=dict.fromkeys(files, 0.5))).order(0)
