"""The first rows of each source of a corpus of records, and what they are told to be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from llmfactory.data.form.spec import RecordSpec
from llmfactory.data.record.detect import LOOKED_AT, detect, told
from llmfactory.data.record.formats import dumped, parsed, renamed
from llmfactory.data.record.record import BadRow, Kind
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Source
from llmfactory.data.spec import DocumentsSpec


def detected(spec: DocumentsSpec) -> dict[str, list[tuple[str, str]]]:
    """Of each source what was found, a line each; nothing of data that are no records."""
    form = spec.form
    if not isinstance(form, RecordSpec):
        return {}
    rows = {name: islice(_rows(one.build()), LOOKED_AT) for name, one in spec.named().items()}
    return {name: told(detect((_renamed(text, form) for text in some), [Kind[form.kind]])) for name, some in rows.items()}


def _rows(source: Source) -> Iterator[str]:
    for unit in source.units():
        for document in source.documents(unit, Account(1.0)):  # what is bad is counted where it is prepared
            yield document.text


def _renamed(text: str, form: RecordSpec) -> str:
    try:
        return dumped(renamed(parsed(text), form.fields)) if form.fields else text
    except BadRow:
        return text
