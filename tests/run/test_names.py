"""Names of run folders."""

from __future__ import annotations

import re
from datetime import datetime

from llmfactory.run.names import ADJECTIVES, NOUNS, make_name


def test_names_are_readable_and_safe_as_folders():
    name = make_name({"model": "llama_tiny", "data": "my/own data"}, datetime(2026, 11, 21))
    assert re.fullmatch(r"llama_tiny-my_own_data-1121-[a-z]+-[a-z]+", name)


def test_there_are_thousands_of_names_a_day():
    assert len(set(ADJECTIVES)) * len(set(NOUNS)) > 2000
    assert len({make_name({}) for _ in range(50)}) > 40
