"""Text to ids with GPT-2's vocabulary, against `tiktoken` and against transformers' fast tokenizer.

    python benchmarks/tokenizing.py vocab.json text.txt [--rounds 5] [--document 4000]

`vocab.json` is GPT-2's (or encoder.json), with its merges beside it; the text is cut into documents. `tiktoken`: its own
`encode_ordinary` on each document, with its own pattern for GPT-2. `arrays`: our tokenizer. `shards`: documents to token files, as
preparing a corpus does it once the documents are there. `tokenizers`: the library's batch call. `transformers`: a call of its fast
tokenizer. Each sample is a process and one thread; times are CPU time a MB of text. Before that, all must give the same ids.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmfactory.data.encode import CHUNK, TokenWriter
from llmfactory.data.form.spec import Text
from llmfactory.data.tokenizer.gpt2_files import BESIDE, read
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.patterns import letters
from llmfactory.data.tokenizer.spec import Gpt2Files
from llmfactory.data.tokens import dtype_for

Way = Callable[[Sequence[str]], Any]
MOST = 3_000_000
"""Characters of the text."""


def ours(vocab: Path) -> HfTokenizer:
    made = Gpt2Files(file=str(vocab)).build(1 << 20).make(())
    assert isinstance(made, HfTokenizer)
    return made


def tiktoken(vocab: Path) -> Way:
    import tiktoken as library
    from tiktoken_ext.openai_public import r50k_pat_str

    byte = {letter: number for number, letter in enumerate(letters())}
    known = ours(vocab).inner.get_vocab(with_added_tokens=False)
    ranks = {bytes(byte[c] for c in token): number for token, number in known.items() if token != "<|endoftext|>"}
    encoding = library.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": known["<|endoftext|>"]}
    )
    return lambda texts: [encoding.encode_ordinary(text) for text in texts]


def transformers(vocab: Path) -> Way:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=read(vocab, vocab.with_name(BESIDE[vocab.name])))
    fast.model_max_length = 1 << 30
    return lambda texts: fast(list(texts))["input_ids"]


def tokenizers(vocab: Path) -> Way:
    inner = ours(vocab).inner
    return lambda texts: [one.ids for one in inner.encode_batch_fast(list(texts), add_special_tokens=False)]


def shards(vocab: Path) -> Way:
    tokenizer, form = ours(vocab), Text().build()

    def write(texts: Sequence[str]) -> list[np.ndarray]:
        dtype = dtype_for(tokenizer.vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            with TokenWriter(Path(folder), "train", dtype, tokenizer.end_id) as writer:
                chunk: list[str] = []
                size = 0
                for text in [*texts, None]:
                    if text is not None:
                        chunk.append(text)
                        size += len(text.encode())
                    if size >= CHUNK or text is None:
                        writer.add(form.encode(tokenizer, chunk), size)
                        chunk, size = [], 0
            tokens = np.fromfile(Path(folder) / "train.bin", dtype)
        return np.split(tokens, np.flatnonzero(tokens == tokenizer.end_id)[1:])

    return write


WAYS: dict[str, Callable[[Path], Way]] = {
    "tiktoken": tiktoken,
    "arrays": lambda vocab: ours(vocab).encode_arrays,
    "shards": shards,
    "tokenizers": tokenizers,
    "transformers": transformers,
}


def documents(path: Path, length: int) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="ignore")[:MOST]
    return [text[place : place + length] for place in range(0, len(text), length)]


def measure(name: str, vocab: Path, texts: list[str]) -> None:
    """CPU milliseconds a MB, the best of three passes; what is done once for all texts does not count."""
    way, best = WAYS[name](vocab), float("inf")
    way(texts[:3])
    for _ in range(3):
        start = time.process_time()
        way(texts)
        best = min(best, time.process_time() - start)
    print(best * 1e9 / sum(len(text.encode()) for text in texts))


def same(vocab: Path, texts: list[str]) -> None:
    """Raises AssertionError: a way gives other ids."""
    expected = [list(ids) for ids in tiktoken(vocab)(texts)]
    for name, way in WAYS.items():
        found = [np.asarray(ids).tolist() for ids in way(vocab)(texts)]
        if name == "shards":  # an end before each document
            found = [ids[1:] for ids in found]
        assert found == expected, name
    print(f"{len(WAYS)} ways, the same {sum(map(len, expected)):,} ids of {len(texts):,} documents\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("vocab", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--document", type=int, default=4000, help="characters")
    parser.add_argument("--measure")
    given = parser.parse_args()
    texts = documents(given.text, given.document)
    if given.measure:
        measure(given.measure, given.vocab, texts)
        return
    from harness import interleave

    same(given.vocab, texts)
    common = [__file__, str(given.vocab), str(given.text), "--document", str(given.document), "--measure"]
    interleave({name: [*common, name] for name in WAYS}, "tiktoken", given.rounds, "CPU ms/MB")


if __name__ == "__main__":
    main()
