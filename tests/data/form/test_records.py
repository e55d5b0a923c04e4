"""Records that are more than a text (pairs, labels, rankings, scores), from rows of files to rows of batches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import source_of, trained
from token_files import token_file_of
from torch import Tensor

from llmfactory.core.batch import IGNORE, split
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Drop, Kept
from llmfactory.data.form.form import BadDocument
from llmfactory.data.form.record_rows import RecordRows
from llmfactory.data.form.records import RecordForm
from llmfactory.data.form.spec import Chat, FormSpec, Kto, Preference, Ranking, RecordSpec, Reward, TooLong, Unwritable
from llmfactory.data.form.template.spec import PLAIN, Jinja
from llmfactory.data.loader import StepLoader, held_out_batches
from llmfactory.data.pack.spec import BestFit, Document, Grouped, PackSpec
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.tokenizer import Tokenizer

T = 64
PROMPT = "User: q\n\nAssistant:"
CHATML = Jinja(**dict(zip(("source", "specials"), source_of("chatml"), strict=True)))


def prepared(
    folder: Path,
    spec: RecordSpec,
    rows: list[Any],
    seq_len: int = T,
    tokenizer: Tokenizer | None = None,
    pack: PackSpec | None = None,
) -> Any:
    """The tokenizer, and the rows that training reads."""
    form = spec.build()
    assert isinstance(form, RecordForm)
    equipped = form.equip(tokenizer or ByteTokenizer(), 400)
    outcomes = [form.normalize(Page("x", json.dumps(row))) for row in rows]
    assert all(isinstance(outcome, Kept) for outcome in outcomes), outcomes
    tokens = token_file_of(folder, equipped, form.encode(equipped, [outcome.text for outcome in outcomes]))  # type: ignore[union-attr]
    return equipped, form.rows(pack or Document(), tokens, seq_len)


def texts(tokenizer: Tokenizer, tokens_BT: Tensor, labels_BT: Tensor) -> list[tuple[str, str]]:
    """Of each row what is read and what is learned; a bar is an end."""

    def spelled(ids: Tensor) -> str:
        return "".join("|" if i == tokenizer.end_id else tokenizer.decode([i]) for i in ids.tolist())

    return [(spelled(row), spelled(labels[labels != IGNORE])) for row, labels in zip(tokens_BT, labels_BT, strict=True)]


def documents(tokenizer: Tokenizer, batch: dict[str, Tensor], number: int) -> list[tuple[str, str]]:
    """Of document `number` of each row, from 1, what is read and what is learned."""
    found = []
    for tokens, labels, segments in zip(batch["tokens"], batch["labels"], batch["segments"], strict=True):
        own = segments == number
        found += texts(tokenizer, tokens[own][None], labels[own][None])
    return found


def read(rows: RecordRows) -> dict[str, Tensor]:
    batch = rows.read(np.arange(len(rows)))
    assert all(len(field) == len(rows) for field in batch.values()), "every field can be cut along the rows"
    pieces = list(split(batch, 1))
    assert len(pieces) == len(rows)
    for name, field in batch.items():
        assert torch.equal(torch.cat([piece[name] for piece in pieces]).nan_to_num(-7), field.nan_to_num(-7))
    return batch


def test_a_pair_is_two_documents_of_a_row_with_one_prompt(tmp_path: Path) -> None:
    some = [
        {"prompt": "q", "chosen": "a", "rejected": "bb", "margin": 1.5},
        {
            "chosen": "\n\nHuman: q\n\nAssistant: h\n\nHuman: r\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: h\n\nHuman: r\n\nAssistant: b",
        },
    ]
    tokenizer, rows = prepared(tmp_path, Preference(), some, seq_len=2 * T)
    batch = read(rows)
    chosen, rejected = (documents(tokenizer, batch, number) for number in (1, 2))
    assert [learned for _, learned in chosen] == [" a|", " a|"]
    assert [learned for _, learned in rejected] == [" bb|", " b|"], "answers of the prompt are read"
    assert chosen[0][0] == f"|{PROMPT} a"
    assert rejected[0][0] == f"|{PROMPT} bb", "each answer stands behind a prompt of its own"
    assert batch["margin"].nan_to_num(-1).tolist() == [1.5, -1]
    sizes = [len(f"|{PROMPT} a"), len("|User: q\n\nAssistant: h|\n\nUser: r\n\nAssistant: a")]
    assert (batch["segments"] == 1).sum(1).tolist() == sizes
    assert batch["positions"][0, : sizes[0] + 2].tolist() == [*range(sizes[0]), 0, 1], "each document begins at position 0"
    assert {*batch} == {"tokens", "labels", "positions", "segments", "margin"}
    assert rows.isolated


def test_equal_answers_are_bad_unless_they_are_wanted() -> None:
    row = Page("x", json.dumps({"prompt": "q", "chosen": "a", "rejected": "a"}))
    outcome = Preference().build().normalize(row)
    assert isinstance(outcome, Drop)
    assert outcome.reason == "equal answers"
    assert isinstance(Preference(keep_equal=True).build().normalize(row), Kept)


def test_labels(tmp_path: Path) -> None:
    some = [
        {"prompt": "q", "completion": "a", "label": True},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}], "label": False},
    ]
    tokenizer, rows = prepared(tmp_path, Kto(), some)
    batch = read(rows)
    assert batch["label"].tolist() == [1, 0]
    assert [learned for _, learned in texts(tokenizer, batch["tokens"], batch["labels"])] == [" a|", " b|"]


def test_rankings_of_different_length(tmp_path: Path) -> None:
    tree = {
        "prompt": {
            "role": "prompter",
            "text": "q",
            "replies": [
                {
                    "role": "assistant",
                    "text": "y",
                    "rank": 1,
                    "replies": [
                        {
                            "role": "prompter",
                            "text": "r",
                            "replies": [
                                {"role": "assistant", "text": "m", "rank": 0, "replies": []},
                                {"role": "assistant", "text": "n", "rank": 1, "replies": []},
                            ],
                        }
                    ],
                },
                {"role": "assistant", "text": "x", "rank": 0, "replies": []},
            ],
        }
    }
    some = [
        {"prompt": "q", "responses": ["b", "a", "c"], "scores": [2, 3, 1]},
        tree,
        {"prompt": "q", "responses": list("edcba"), "scores": [1, 2, 3, 4, 5]},
    ]
    tokenizer, rows = prepared(tmp_path, Ranking(most=3), some, seq_len=2 * T)
    assert len(rows) == 4, "a tree holds several rankings"
    batch = read(rows)
    assert batch["tokens"].shape == (4, 2 * T)
    assert batch["count"].tolist() == [3, 2, 2, 3]
    learned = zip(*([said for _, said in documents(tokenizer, batch, number)] for number in (1, 2, 3)), strict=True)
    assert list(learned) == [(" a|", " b|", " c|"), (" x|", " y|", ""), (" m|", " n|", ""), (" a|", " b|", " e|")]
    assert batch["scores"].nan_to_num(-1).tolist() == [[3, 2, 1], [-1, -1, -1], [-1, -1, -1], [5, 4, 1]]
    assert (batch["segments"] == 3).sum(1).tolist()[1:3] == [0, 0], "there is none"
    outcome = Ranking(most=3).build().normalize(Page("x", json.dumps(some[2])))
    assert isinstance(outcome, Kept)
    assert outcome.changes == {"answers between the best and the worst": 2}
    with pytest.raises(ConfigError, match="most = 1: must be at least 2"):
        Ranking(most=1)


def test_scores_of_the_whole_and_of_each_step(tmp_path: Path) -> None:
    some = [
        {"prompt": "q", "response": "a", "score": 0.5},
        {"question": "q", "steps": ["one ", "two", "one"], "scores": [1, -1, 0.5]},
    ]
    tokenizer, rows = prepared(tmp_path, Reward(), some)
    batch = read(rows)
    assert batch["score"].nan_to_num(-7).tolist() == [0.5, -7]
    whole = f"|{PROMPT} one\ntwo\none"
    assert texts(tokenizer, batch["tokens"], batch["labels"])[1] == (whole.ljust(T, "|"), " one\ntwo\none|")
    places = [whole.index("one") + 2, whole.index("two") + 2, len(whole) - 1]
    assert batch["rewards"][0].isnan().all()
    found = batch["rewards"][1].isnan().logical_not().nonzero().flatten().tolist()
    assert found == places
    assert batch["rewards"][1, places].tolist() == [1, -1, 0.5]


def test_steps_end_before_the_token_that_ends_the_turn(tmp_path: Path) -> None:
    row = {"question": "q", "steps": ["some words", "more words"], "scores": [1, 0]}
    tokenizer, rows = prepared(tmp_path, Reward(template=CHATML), [row], tokenizer=trained())
    batch = read(rows)
    rewards, tokens = batch["rewards"][0], batch["tokens"][0].tolist()
    first, second = rewards.isnan().logical_not().nonzero().flatten().tolist()
    assert tokenizer.decode(tokens[: first + 1]).endswith("assistant\nsome words")
    assert tokenizer.decode(tokens[: second + 1]).endswith("some words\nmore words")
    assert texts(tokenizer, batch["tokens"], batch["labels"])[0][1] == "some words\nmore words<|im_end|>"


def test_steps_that_are_cut_off_have_no_reward(tmp_path: Path) -> None:
    row = {"question": "q", "steps": ["one", "two"], "scores": [1, 0]}
    _, rows = prepared(tmp_path, Reward(max_tokens=len(f"|{PROMPT} one\nt")), [row])
    rewards = read(rows)["rewards"][0]
    assert rewards[~rewards.isnan()].tolist() == [1]


@pytest.mark.parametrize("way", TooLong)
def test_records_that_are_too_long_are_left_out_or_cut_on_both_sides(tmp_path: Path, way: TooLong) -> None:
    old = [{"role": "user", "content": "ooo"}, {"role": "assistant", "content": "p"}]
    short = {"prompt": "q", "chosen": "a", "rejected": "b"}
    long = {"prompt": [*old, {"role": "user", "content": "q"}], "chosen": "x", "rejected": "y" * 30}
    tokenizer, rows = prepared(tmp_path, Preference(max_tokens=T, too_long=way), [short, long, short], seq_len=2 * T)
    batch = read(rows)
    chosen, rejected = (documents(tokenizer, batch, number) for number in (1, 2))
    assert [learned for _, learned in (chosen[0], chosen[-1])] == [" a|", " a|"]
    if way is TooLong.drop:
        assert len(rows) == 2
    elif way is TooLong.left:
        assert [side[1][0] for side in (chosen, rejected)] == [f"|{PROMPT} x", f"|{PROMPT} {'y' * 30}"]
    else:
        assert chosen[1][1] == " x|"
        assert rejected[1][1].startswith(" yyy")
        assert not rejected[1][1].endswith("|")


def test_a_record_longer_than_a_row_is_refused_with_what_to_do(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a" * 100, "label": True}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=r"a record of 121 tokens, .*data.seq_len=64.*data.form.max_tokens=64.*data.seq_len=121"):
        prepared(tmp_path / "one", Kto(), [row])
    pair = {"prompt": "q", "chosen": "a" * 40, "rejected": "b"}
    with pytest.raises(UserError, match=r"a record of 83 tokens, 2 answers .*data.form.max_tokens=32 .*data.seq_len=83"):
        prepared(tmp_path / "two", Preference(), [pair])


def test_the_loader_and_evaluation_read_them(tmp_path: Path) -> None:
    some = [{"prompt": "q", "chosen": "a" * size, "rejected": "b"} for size in range(1, 6)]
    tokenizer, rows = prepared(tmp_path, Preference(), some)
    batch = next(iter(StepLoader(rows, batch_size=4, seed=0)))
    assert batch["tokens"].shape == (4, T)
    for rank, learned in ((0, []), (1, [" aaaa|", " b|"]), (2, [" aaaaa|", " b|"])):  # two records are left for three processes
        last = list(held_out_batches(rows, batch_size=3, rank=rank, world=3))[-1]
        assert [said for number in (1, 2) for _, said in documents(tokenizer, last, number) if said] == learned
        assert (last["segments"].amax() > 0) == bool(learned)


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_as_wide_as_the_longest_of_their_batch(tmp_path: Path, rank: int) -> None:
    """On every process, whichever of the batch's rows it has, and whatever stands in them."""
    some = [{"question": "q", "steps": ["a" * size, "b"], "scores": [1, 0]} for size in range(1, 9)]
    pack = Grouped(multiple=4)
    _, rows = prepared(tmp_path, Reward(), some, pack=pack)
    whole = list(itertools.islice(StepLoader(rows, batch_size=4, seed=0), 2))
    mine = list(itertools.islice(StepLoader(rows, batch_size=4, seed=0, rank=rank, world=2), 2))
    for one, own in zip(whole, mine, strict=True):
        assert one["tokens"].shape[1] < T
        assert one["tokens"].shape[1] % 4 == 0
        part = slice(2 * rank, 2 * rank + 2)
        assert all(torch.equal(field[part].nan_to_num(-7), own[name].nan_to_num(-7)) for name, field in one.items())
        assert own["rewards"].isnan().logical_not().sum() == 4, "what was added to a row judges nothing"


@pytest.mark.parametrize("spec", [Preference(), Kto(), Ranking(), Reward(), Chat()], ids=lambda spec: type(spec).__name__)
def test_nothing_at_all(tmp_path: Path, spec: FormSpec) -> None:
    form = spec.build()
    tokenizer = form.equip(ByteTokenizer(), 257)
    assert form.encode(tokenizer, []) == []
    rows = form.rows(BestFit(), token_file_of(tmp_path, tokenizer, []), T)
    assert len(rows) == 0


# Conversations in packed rows.


CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": f"q{number} " * (number % 4 + 1)},
            {"role": "assistant", "content": f"some words {number}"},
            {"role": "user", "content": "more?"},
            {"role": "assistant", "content": "words " * (number % 5), "weight": number % 2}
            if number % 5
            else {"role": "assistant", "content": "x"},
        ]
    }
    for number in range(23)
]


@pytest.mark.parametrize("template", ["chatml", "plain", "llama2"])
def test_packed_and_single_conversations_give_the_same_loss_for_each_token(tmp_path: Path, template: str) -> None:
    """And the loss that a loop over conversations, outside of all rows, gives: over the tokens that the assistant wrote."""
    from llmfactory.config.compose import compose_job
    from llmfactory.model.declarations import declarations
    from llmfactory.model.initialize import initialize
    from llmfactory.stage.training import Root

    source, specials = source_of(template)
    form = Chat(template=Jinja(source=source, specials=specials)).build()
    tokenizer = form.equip(trained(), 400)
    pages = [form.normalize(Page("x", json.dumps(row))) for row in CONVERSATIONS]
    encoded = form.encode(tokenizer, [page.text for page in pages if isinstance(page, Kept)])
    file = token_file_of(tmp_path, tokenizer, encoded)
    width = max(len(one.ids) for some in encoded for one in some) + 20
    line = ["model=llama_tiny", "model.vocab_size=400", "model.dim=16", "model.n_layers=2", "model.attention.n_heads=2"]
    job = compose_job([*line, "model.ffn.hidden=24", "model.max_positions=512", f"data.seq_len={width}"]).job
    model = job.model.build().double()
    initialize(model, 0, lambda parameter, value: parameter.copy_(value), declarations(model))
    root = Root(model, job.stage.objective.build(), True)  # type: ignore[attr-defined]
    losses = {}
    for pack in (BestFit(), Document(), Grouped(multiple=1)):
        rows = form.rows(pack, file, width)
        root.isolated = rows.isolated
        batch = rows.read(np.arange(len(rows)))
        losses[type(pack).__name__] = float(root(batch)["loss"].detach()) / int((batch["labels"] != IGNORE).sum())
        assert int((batch["labels"] != IGNORE).sum()) == rows.targets
    assert len(form.rows(BestFit(), file, width)) < len(form.rows(Document(), file, width)), "several to a row"
    total, count = 0.0, 0
    for (one,) in encoded:
        assert one.targets is not None
        stream = torch.tensor([[*one.ids, tokenizer.end_id]])
        plain = {"tokens": stream[:, :-1], "positions": torch.arange(stream.shape[1] - 1)[None]}
        plain["segments"] = torch.ones_like(plain["tokens"])
        with torch.no_grad():
            logits = model.head(model(plain["tokens"], model.context(plain, False)))
        each = torch.nn.functional.cross_entropy(logits[0], stream[0, 1:], reduction="none")
        total += float(each[torch.from_numpy(one.targets[1:])].sum())
        count += int(one.targets.sum())
    assert losses["BestFit"] == pytest.approx(losses["Document"], rel=1e-9)
    assert losses["BestFit"] == pytest.approx(total / count, rel=1e-9)


ROWS: dict[type[RecordSpec], dict[str, Any]] = {
    Preference: {"prompt": "question", "chosen": "some words", "rejected": "more words"},
    Kto: {"prompt": "question", "completion": "some words", "response": "others", "label": True},
    Ranking: {"prompt": "question", "responses": ["some words", "more words"], "completions": ["a", "b"]},
    Reward: {"prompt": "question", "response": "some words", "score": 1.0, "steps": ["a"], "scores": [1]},
}
NEEDED = {Preference: "comparison", Kto: "judged", Ranking: "answers", Reward: "steps"}
OLD = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "older"}]


@pytest.mark.parametrize("cls", ROWS, ids=lambda cls: cls.__name__)
def test_every_option_of_records_works_for_each_form(cls: type[RecordSpec]) -> None:
    def found(row: dict[str, Any], **options: Any) -> Any:
        form = cls(**options).build()
        outcome = form.normalize(Page("x", json.dumps(row)))
        if isinstance(outcome, Drop):
            return outcome.reason
        tokenizer = form.equip(trained(), 400)
        (encoded,) = form.encode(tokenizer, [outcome.text])
        return None if encoded is None else [list(one.ids) for one in encoded]

    row = ROWS[cls]
    plain = found(row)
    assert found(row, template=CHATML) != plain
    assert found(row, system="s") != plain
    assert found({**row, "frage": "another"}, fields={"prompt": "frage"}) != plain
    assert found({"prompt": "q"}, format=NEEDED[cls]) == "not of the format that is asked for"
    with pytest.raises(ConfigError, match="format = 'openai': is no format of such records: there are "):
        cls(format="openai")
    long = {**row, "prompt": [*OLD, {"role": "user", "content": "q"}]}
    size = max(map(len, found(long)))
    ways = [found(long, max_tokens=size, too_long=way) for way in TooLong]
    assert len({str(way) for way in ways}) == 3
    assert ways[list(TooLong).index(TooLong.drop)] == []
    picky = Jinja(source="{% if messages[0].content != 'x' %}{{ raise_exception('not so') }}{% endif %}" + PLAIN)
    with pytest.raises(BadDocument, match=r"not so; or leave .*data.form.unwritable=drop") as raised:
        found(row, template=picky)
    assert raised.value.number == 0
    assert found(row, template=picky, unwritable=Unwritable.drop) is None
