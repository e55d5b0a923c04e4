"""Several answers to a prompt, the best first."""

from __future__ import annotations

from llmfactory.data.form.record_rows import RankedRows
from llmfactory.data.form.records import Side, SidedForm
from llmfactory.data.form.spec import Ranking
from llmfactory.data.pack.spec import PackSpec
from llmfactory.data.record.record import Record
from llmfactory.data.tokens import TokenFile


class RankingForm(SidedForm):
    def __init__(self, spec: Ranking) -> None:
        SidedForm.__init__(self, spec)
        self.sequences = self.most = spec.most

    def prepared(self, record: Record, changes: dict[str, int]) -> Record:
        over = len(record["answers"]) - self.most
        if over <= 0:
            return record
        changes["answers between the best and the worst"] = changes.get("answers between the best and the worst", 0) + over
        best, worst = (self.most + 1) // 2, len(record["answers"]) - self.most // 2
        return {
            name: [*value[:best], *value[worst:]] if name in ("answers", "scores") else value for name, value in record.items()
        }

    def sides(self, record: Record) -> list[Side]:
        scores = record.get("scores")
        return [
            self.side(record, answer, **({} if scores is None else {"score": scores[number]}))
            for number, answer in enumerate(record["answers"])
        ]

    def rows(self, pack: PackSpec, tokens: TokenFile, seq_len: int) -> RankedRows:
        return RankedRows(pack, tokens, seq_len, self.most)
