"""Conversations: what the assistant writes is learned, the rest is read."""

from __future__ import annotations

from llmfactory.data.form.records import RecordForm, Side
from llmfactory.data.form.spec import Chat, TrainOn
from llmfactory.data.record.record import BadRow, Record


class ChatForm(RecordForm):
    prompt = "messages"

    def __init__(self, spec: Chat) -> None:
        RecordForm.__init__(self, spec)
        self.train_on = spec.train_on
        self.last_only = spec.train_on is not TrainOn.answers

    def prepared(self, record: Record, changes: dict[str, int]) -> Record:
        messages = record["messages"]
        last = max((place for place, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        if last < 0:
            raise BadRow("no answer", "no message is the assistant's")
        if last < len(messages) - 1:
            changes["questions at the end without an answer"] = changes.get("questions at the end without an answer", 0) + 1
            lost = sum(
                part["type"] == "image"
                for one in messages[last + 1 :]
                if isinstance(one["content"], list)
                for part in one["content"]
            )
            record = {**record, "messages": messages[: last + 1]}
            if lost:
                record["images"] = record["images"][:-lost]
        if self.train_on is TrainOn.answers and not self._learned(record):
            raise BadRow("nothing to learn", "every answer has weight 0")
        return record

    def sides(self, record: Record) -> list[Side]:
        note = {"images": record["images"]} if record.get("images") else {}
        return [Side(record["messages"], self._learned(record), record.get("tools", ()), note)]

    def _learned(self, record: Record) -> frozenset[int] | None:
        if self.train_on is TrainOn.everything:
            return None
        said = [message for message in record["messages"] if message["role"] == "assistant"]
        if self.train_on is TrainOn.last:
            return frozenset({len(said) - 1})
        return frozenset(number for number, message in enumerate(said) if message.get("weight", 1))
