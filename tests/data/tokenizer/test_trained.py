"""What holds of every tokenizer that is learned: it brings text back where it can, always learns the same, keeps its promises of
ids, and is the same when it was written and read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.tokenizer.base_spec import Normalization, TrainedSpec
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe, Characters, SentencepieceBpe, Unigram, Unknown, Wordpiece
from llmfactory.data.tokenizer.tokenizer import Tokenizer, load
from llmfactory.data.tokenizer.trained import characters, without_others

KINDS: list[type[TrainedSpec]] = [ByteBpe, SentencepieceBpe, Unigram, Wordpiece, Characters]
LOSSLESS = [ByteBpe, SentencepieceBpe, Unigram, Characters]
TURNS = ["<|im_start|>", "<|im_end|>"]


def made(kind: type[TrainedSpec], corpus: list[str], size: int = 500, **more: object) -> Tokenizer:
    return kind(**more).build(size).make(iter(corpus))


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("form", [Normalization.none, Normalization.nfc])
def test_a_text_comes_back(kind: type[TrainedSpec], form: Normalization, corpus: list[str], samples: list[str]) -> None:
    import unicodedata

    tokenizer = made(kind, corpus, normalization=form)
    assert tokenizer.lossless
    for text in samples:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == (text if form is Normalization.none else unicodedata.normalize("NFC", text))
        assert tokenizer.end_id not in ids
        assert max(ids, default=0) < tokenizer.vocab_size


@pytest.mark.parametrize(
    ("kind", "more"),
    [(Wordpiece, {}), (Characters, {"unknown": Unknown.token}), (ByteBpe, {"normalization": Normalization.nfkc})],
)
def test_what_is_lost_is_said(kind: type[TrainedSpec], more: dict[str, object], corpus: list[str]) -> None:
    assert not made(kind, corpus, **more).lossless


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_texts_and_a_folder_keeps_all(
    kind: type[TrainedSpec], corpus: list[str], samples: list[str], tmp_path: Path
) -> None:
    tokenizer = made(kind, corpus, special_tokens=TURNS)
    ids = tokenizer.encode_batch(samples)
    assert ids == [tokenizer.encode(text) for text in samples] == [one.tolist() for one in tokenizer.encode_arrays(samples)]
    tokenizer.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert again.encode_batch(samples) == ids
    assert [again.decode(one) for one in ids] == [tokenizer.decode(one) for one in ids]
    assert (again.specials(), again.end_id, again.vocab_size, again.lossless, again.usage) == (
        tokenizer.specials(),
        tokenizer.end_id,
        tokenizer.vocab_size,
        tokenizer.lossless,
        tokenizer.usage,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_ids_that_no_text_is_given(kind: type[TrainedSpec], corpus: list[str]) -> None:
    tokenizer = made(kind, corpus, special_tokens=TURNS)
    ids = {tokenizer.specials()[name] for name in TURNS}
    assert len(ids) == 2
    assert tokenizer.end_id not in ids
    assert not ids & set(tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n" * 3))
    assert tokenizer.decode([tokenizer.specials()["<|im_start|>"]]).strip() == "<|im_start|>"
    with pytest.raises(UserError, match=r"2 for data.tokenizer.special_tokens"):
        kind(special_tokens=TURNS).build({Wordpiece: 7}.get(kind, 258))


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_what_was_asked_for_at_most(kind: type[TrainedSpec], corpus: list[str]) -> None:
    assert 370 < made(kind, corpus, size=400).vocab_size <= 400 or kind in (Characters, Wordpiece)
    assert kind(vocab_size=380).build(400).make(corpus).vocab_size <= 380
    with pytest.raises(UserError, match=r"data.tokenizer.vocab_size=500 has 500 ids, the model only 400"):
        kind(vocab_size=500).build(400)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: type[TrainedSpec], corpus: list[str]) -> None:
    tokenizer = made(kind, corpus, size=600)
    english = "The quick brown fox jumps over the lazy dog"
    most = {Characters: len(english), Unigram: 40}.get(kind, 24)
    assert len(tokenizer.encode(english)) <= most
    assert len(tokenizer.encode("数学是研究数量")) <= (7 if kind in (Characters, Wordpiece) else 8)


TRAIN = """
import hashlib, pathlib, sys
from llmfactory.data.tokenizer import spec
texts = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").split("---")
for kind in sys.argv[2:]:
    print(hashlib.sha256(getattr(spec, kind)().build(700).make(texts).inner.to_str().encode()).hexdigest())
"""


def test_the_result_does_not_depend_on_threads_or_process(root: Path, tmp_path: Path, corpus: list[str]) -> None:
    found, file = set(), tmp_path / "corpus.txt"
    sources = [path.read_text(encoding="utf-8") for path in sorted((root / "llmfactory/core").glob("*.py"))]
    file.write_text("---".join([*corpus, *sources]), encoding="utf-8")
    for threads, parallel in (("1", "false"), ("5", "true")):
        environment = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", TRAIN, str(file), *(kind.__name__ for kind in KINDS)]
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        assert len(run.stdout.split()) == len(KINDS)
        found.add(run.stdout)
    assert len(found) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_in_the_fingerprint(kind: type[TrainedSpec]) -> None:
    specs = [kind(), kind(vocab_size=300), kind(train_bytes=9), kind(special_tokens=TURNS), kind(normalization=Normalization.nfc)]
    if issubclass(kind, (SentencepieceBpe, Unigram)):
        specs += [kind(coverage=0.99), kind(split_digits=False)]
    if kind is Wordpiece:
        specs += [Wordpiece(lowercase=False)]
    if kind is Characters:
        specs += [Characters(unknown=Unknown.token)]
    assert len({spec.build(4096).fingerprint() for spec in specs} | {kind().build(5000).fingerprint()}) == len(specs) + 1


@pytest.mark.parametrize("kind", [SentencepieceBpe, Unigram])
def test_digits_stand_alone_and_rare_characters_are_spelled_in_bytes(kind: type[TrainedSpec], corpus: list[str]) -> None:
    text = [*corpus[:1], *(f"Born in {year} they were {year % 97} in {year + 50}. " * 9 for year in range(1900, 1990)), "罕"]
    together, apart = (kind(split_digits=split, coverage=0.999).build(500).make(text) for split in (False, True))
    assert isinstance(together, HfTokenizer)
    assert isinstance(apart, HfTokenizer)
    shown = [[one.inner.id_to_token(number) for number in one.encode("in 1984")] for one in (together, apart)]
    assert shown[1][-4:] == ["1", "9", "8", "4"]
    assert any(len(piece.strip("▁")) > 1 and piece.strip("▁").isdigit() for piece in shown[0])
    assert [apart.inner.id_to_token(number) for number in apart.encode("罕")[-3:]] == ["<0xE7>", "<0xBD>", "<0x95>"]
    assert len(kind(coverage=1.0).build(500).make(text).encode("罕")) < len(apart.encode("罕"))


def test_a_normal_form_is_learned_and_used(corpus: list[str]) -> None:
    for kind in KINDS:
        plain = made(kind, ["café ﬁne " * 100], size=300, normalization=Normalization.nfkc)
        assert plain.encode("cafe\u0301 ﬁne") == plain.encode("café fine"), kind
        assert isinstance(plain, HfTokenizer)


def test_the_most_frequent_characters_of_equals_the_lower_first() -> None:
    assert characters(["bda", "bac"], 10) == ["a", "b", "c", "d"]
    assert characters(["bda", "bac"], 3) == ["a", "b", "c"]
    assert characters(["aaaab"], 10, coverage=0.8) == ["a"]
    assert characters([], 10) == []
    assert list(without_others(["ab!c", "!!", "]^-c"], ["a", "b", "c", "^", "]"])) == ["ab", "c", "]^", "c"]


def test_a_wrong_list_of_special_tokens_is_named() -> None:
    for wrong in (["a", "a"], [""]):
        with pytest.raises(ConfigError, match=r"special_tokens = .*each must have a name of its own"):
            ByteBpe(special_tokens=wrong)
