"""Answers with a score, or solutions with a score for each step (Lightman et al. 2023): there, at the last token of the step."""

from __future__ import annotations

from dataclasses import replace

from llmfactory.data.form.record_rows import ScoreRows
from llmfactory.data.form.records import Side, SidedForm
from llmfactory.data.pack.spec import PackSpec
from llmfactory.data.record.messages import assistant
from llmfactory.data.record.record import Record
from llmfactory.data.tokens import TokenFile


class RewardForm(SidedForm):
    def sides(self, record: Record) -> list[Side]:
        if "steps" not in record:
            return [self.side(record, record["answer"], score=record["score"])]
        whole = self.side(record, [assistant("\n".join(step.strip() for step in record["steps"]))], scores=record["scores"])
        return [replace(whole, steps=tuple(record["steps"]))]

    def rows(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> ScoreRows:
        return ScoreRows(pack, tokens, seq_len)
