"""Answers with a label."""

from __future__ import annotations

from llmfactory.data.form.record_rows import LabelRows
from llmfactory.data.form.records import Side, SidedForm
from llmfactory.data.pack.spec import PackSpec
from llmfactory.data.record.record import Record
from llmfactory.data.tokens import TokenFile


class KtoForm(SidedForm):
    def sides(self, record: Record) -> list[Side]:
        return [self.side(record, record["answer"], label=record["label"])]

    def rows(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> LabelRows:
        return LabelRows(pack, tokens, seq_len)
