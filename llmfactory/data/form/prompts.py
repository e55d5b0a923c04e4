"""Prompts: written out up to where an answer begins, with what is known of them beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from llmfactory.data.form.form import Encoded, Sequences
from llmfactory.data.form.record_rows import PromptRows
from llmfactory.data.form.records import Messages, Side, SidedForm
from llmfactory.data.form.spec import Prompts, TooLong
from llmfactory.data.form.template.ids import encode
from llmfactory.data.pack.spec import PackSpec
from llmfactory.data.record.record import BadRow, Record
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokens import TokenFile


class PromptsForm(SidedForm):
    def __init__(self, spec: Prompts) -> None:
        SidedForm.__init__(self, spec)
        self.spec = spec

    def prepared(self, record: Record, changes: dict[str, int]) -> Record:
        if not self.spec.chat and len(record["prompt"]) > 1:
            raise BadRow("messages where a text is expected", "a text that is continued is a single one (data.form.chat=false)")
        return record

    def sides(self, record: Record) -> list[Side]:
        return [Side(record["prompt"], frozenset())]

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Sequences]:
        some = [json.loads(text)["records"] for text in texts]

        def made(records: list[Record]) -> list[Encoded]:
            ids = self._prompts(tokenizer, [record["prompt"] for record in records])
            parts = zip(records, ids, strict=True)
            return [one for record, its in parts for one in self._fitting(tokenizer, record, its)]

        return [self.attempt(number, partial(made, records)) for number, records in enumerate(some)]

    def _prompts(self, tokenizer: Tokenizer, prompts: Sequence[Messages]) -> list[list[int]]:
        """Tokens up to where an answer begins."""
        if not self.spec.chat:
            begin = list(tokenizer.usage.begin_ids)
            found = tokenizer.encode_batch([messages[0]["content"] for messages in prompts])
            return [[*begin, *ids] or [tokenizer.end_id] for ids in found]
        template = self.template(tokenizer)
        for messages in prompts:
            template.check(messages, ())
        return [ids for ids, _ in encode(tokenizer, [template.prompt(messages) for messages in prompts])]

    def _fitting(self, tokenizer: Tokenizer, record: Record, ids: list[int]) -> list[Encoded]:
        """The prompt; nothing where it is too long and may not be cut."""
        room, size = self.spec.max_tokens, len(ids)
        if room is not None and size >= room:
            if self.spec.too_long is TooLong.drop:
                return []
            while len(ids) >= room and (shorter := self._shorter(record)) is not None:
                record = shorter
                (ids,) = self._prompts(tokenizer, [record["prompt"]])
            ids = ids[-(room - 1) :]
        note = json.dumps({"prompt": record["prompt"], "record": record["record"]}, ensure_ascii=False)
        return [Encoded(ids, None, size - len(ids), note)]

    def rows(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> PromptRows:
        return PromptRows(pack, tokens, seq_len)
