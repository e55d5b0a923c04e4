"""Token files of encoded documents, written as preparing writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmfactory.data.encode import TokenWriter, join
from llmfactory.data.form.form import Encoded
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokens import TokenFile, dtype_for


def token_file_of(
    folder: Path, tokenizer: Tokenizer, documents: Sequence[Sequence[Encoded] | None], conversations: bool = True
) -> TokenFile:
    dtype = dtype_for(tokenizer.vocab_size)
    piece, target = folder / "piece", folder / "target"
    for made in (piece, target):
        made.mkdir()
    with TokenWriter(piece, "train", dtype, tokenizer.end_id) as writer:
        writer.add(documents, 0)
        counts = writer.close()
    join([piece], [counts], "train", target, dtype, tokenizer.end_id)
    return TokenFile.beside(target / "train.bin", dtype, tokenizer.end_id, conversations)
