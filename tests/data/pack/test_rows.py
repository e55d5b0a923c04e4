"""Every packing is the same data: loss per token and gradients of a decoder, with and without a mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from llmfactory.config.compose import compose_job
from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.rows import Rows, shares
from llmfactory.data.pack.spec import BestFit, Concat, Document, Grouped, PackSpec
from llmfactory.data.tokens import TokenFile
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.stage.training import Root

T = 24
LENGTHS = [3, 1, 17, 0, 23, 9, 5, 30, 70, 12]
FITTING = [4, 18, 11, 11, 23, 23, 0, 22]
"""Documents that concatenated rows of T do not cut."""
PACKS = [Concat(), BestFit(), Grouped(group=3, multiple=5)]


@pytest.fixture(scope="module")
def root() -> Root:
    line = ["model=llama_tiny", "model.vocab_size=300", "model.dim=16", "model.n_layers=2", "model.attention.n_heads=2"]
    job = compose_job([*line, "model.ffn.hidden=24", "model.max_positions=64", f"data.seq_len={T}"]).job
    model = job.model.build().double()
    initialize(model, 0, lambda parameter, value: parameter.copy_(value), declarations(model))
    return Root(model, job.stage.objective.build(), True)  # type: ignore[attr-defined]


def measured(root: Root, rows: Rows) -> tuple[dict[tuple[int, int], float], dict[str, Tensor]]:
    """(loss of each target by its token and label, gradients of their mean)."""
    root.zero_grad()
    losses: dict[tuple[int, int], float] = {}
    total, count = torch.zeros((), dtype=torch.float64), 0
    root.isolated = rows.isolated
    for at in range(0, len(rows), 3):
        batch = rows.read(np.arange(at, min(at + 3, len(rows))))
        total = total + root(batch)["loss"]
        count += int((batch["labels"] != IGNORE).sum())
        with torch.no_grad():
            logits = root.model.head(root.model(batch["tokens"], root.model.context(batch, rows.isolated)))
            each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        for token, label, loss in zip(
            batch["tokens"].flatten().tolist(), batch["labels"].flatten().tolist(), each.tolist(), strict=True
        ):
            if label != IGNORE:
                losses[token, label] = loss
    assert count == rows.targets
    (total / count).backward()  # type: ignore[no-untyped-call]
    return losses, {name: one.grad.clone() for name, one in root.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: type(pack).__name__)
def test_packed_and_single_documents_give_the_same_loss_and_gradients(
    root: Root, token_file: Callable[..., TokenFile], pack: PackSpec, masked: bool
) -> None:
    lengths = FITTING if isinstance(pack, Concat) else LENGTHS
    mask = np.random.default_rng(1).integers(0, 2, sum(lengths) + len(lengths) + 1).tolist() if masked else None
    tokens = token_file(lengths, mask=mask)
    if isinstance(pack, Concat):
        assert shares(pack.build(tokens, T))["cut_documents"] == 0
    packed, single = measured(root, pack.build(tokens, T)), measured(root, Document().build(tokens, T))
    assert packed[0].keys() == single[0].keys()
    assert len(packed[0]) == tokens.targets  # tokens all differ, so each pair stands for one place
    assert packed[0] == pytest.approx(single[0], rel=1e-9)
    for name, gradient in single[1].items():
        assert torch.allclose(packed[1][name], gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max())), name


@pytest.mark.parametrize("pack", [*PACKS, Document()], ids=lambda pack: type(pack).__name__)
def test_a_mask_leaves_out_labels_and_nothing_else(token_file: Callable[..., TokenFile], pack: PackSpec) -> None:
    mask = np.random.default_rng(0).integers(0, 2, sum(LENGTHS) + len(LENGTHS) + 1)
    plain, masked = (pack.build(token_file(LENGTHS, mask=how), T) for how in (None, mask.tolist()))
    every, some = (rows.read(np.arange(len(rows))) for rows in (plain, masked))
    for name in ("tokens", "positions", "segments"):
        assert torch.equal(every[name], some[name])
    wanted = {int(token) for token, kept in zip(masked.tokens[1:], mask[1:], strict=True) if kept and token}
    kept = some["labels"] != IGNORE
    assert torch.equal(every["labels"][kept], some["labels"][kept])
    assert {int(label) for label in some["labels"][kept] if label} == wanted
    assert int(kept.sum()) == masked.targets == int(mask[1:].sum())
