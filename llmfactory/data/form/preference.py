"""Pairs: the chosen answer and the rejected one, two sequences with the same prompt."""

from __future__ import annotations

from llmfactory.data.form.record_rows import PairRows
from llmfactory.data.form.records import Side, SidedForm
from llmfactory.data.form.spec import Preference
from llmfactory.data.pack.spec import PackSpec
from llmfactory.data.record.record import BadRow, Record
from llmfactory.data.tokens import TokenFile


class PreferenceForm(SidedForm):
    def __init__(self, spec: Preference) -> None:
        SidedForm.__init__(self, spec)
        self.keep_equal = spec.keep_equal

    def prepared(self, record: Record, changes: dict[str, int]) -> Record:
        if not self.keep_equal and record["chosen"] == record["rejected"]:
            raise BadRow("equal answers", "chosen and rejected are the same")
        return record

    def sides(self, record: Record) -> list[Side]:
        known = {"margin": record["margin"]} if "margin" in record else {}
        return [self.side(record, record["chosen"], **known), self.side(record, record["rejected"])]

    def rows(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> PairRows:
        return PairRows(pack, tokens, seq_len)
