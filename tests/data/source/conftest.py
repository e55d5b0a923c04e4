"""Reading a source to its end, with the account of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document
from llmfactory.data.source.spec import SourceSpec

Read = Callable[..., tuple[list[Document], Account]]


@pytest.fixture
def read() -> Read:
    """`documents, account = read(spec)`: all units in order, one account for all of them."""

    def run(spec: SourceSpec) -> tuple[list[Document], Account]:
        source = spec.build()
        account = Account(source.bad_share)
        return [document for unit in source.units() for document in source.documents(unit, account)], account

    return run
