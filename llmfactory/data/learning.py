"""The task that makes the tokenizer: trained on a sample of the training part, or read from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmfactory.core.special import Special
from llmfactory.data.form.spec import FormSpec
from llmfactory.data.shard import Shards, write_about
from llmfactory.data.sides import Sides
from llmfactory.data.split import Side
from llmfactory.data.tasks import Phase
from llmfactory.data.tokenizer.spec import TokenizerSpec
from llmfactory.data.tokenizer.tokenizer import FOLDER, TokenizerSource


@dataclass(kw_only=True)
class Learning(Phase):
    name: str = "tokenizer"
    label: str = "training the tokenizer"
    tokenizer: TokenizerSpec
    vocab_size: int
    specials: Sequence[Special]
    form: FormSpec
    shards_folder: Path
    sides_folder: Path

    @cached_property
    def source(self) -> TokenizerSource:
        needed = [(name,) for name in self.form.build().specials()]
        return self.tokenizer.build(self.vocab_size, [*self.specials, *needed])

    def sizes(self) -> Sequence[int]:
        return [max(1, self.source.sample_bytes)]

    def do(self, number: int, folder: Path) -> None:
        form = self.form.build()
        shards, sides = Shards.of(self.shards_folder), Sides(self.sides_folder)
        sampled = sample(shards, sides, self.source.sample_bytes)
        made = self.source.make(text for document in sampled for text in form.texts(document))
        form.equip(made, self.vocab_size).save(folder / FOLDER)
        write_about(folder)


def sample(shards: Shards, sides: Sides, size: int) -> Iterator[str]:
    """Training documents of about `size` bytes together, spread evenly over the corpus; all of them where they are no more."""
    trained = []
    for shard, start in zip(shards.shards, shards.starts.tolist(), strict=False):
        side = sides.side[start : start + len(shard)] == Side.train
        for document in sides.cuts:
            if start <= document < start + len(shard):
                side[document - start] = True
        trained.append(side)
    total = sum(int(shard.sizes[its].sum()) for shard, its in zip(shards.shards, trained, strict=True))
    taken = seen = 0
    for shard, start, its in zip(shards.shards, shards.starts.tolist(), trained, strict=False):
        chosen = []
        numbers = its.nonzero()[0].tolist()
        for number, length in zip(numbers, shard.sizes[its].tolist(), strict=True):
            seen += length
            if taken * total < seen * size:
                taken += length
                chosen.append(number)
        for number, entry in zip(chosen, shard.some(chosen), strict=True):
            yield next(text for part, text in sides.parts(start + number, entry.text) if part == "train")
