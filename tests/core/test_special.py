"""Names of special tokens (llmfactory.core.special)."""

from __future__ import annotations

from llmfactory.config.register import classes
from llmfactory.core.special import sentinels


def test_sentinels_are_t5_s() -> None:
    assert sentinels(3) == (("<extra_id_0>",), ("<extra_id_1>",), ("<extra_id_2>",))


def test_no_objective_asks_for_a_token_twice() -> None:
    for name, cls in classes("stage/objective").items():
        if not name.endswith("_spec"):
            spellings = [name for special in cls().specials() for name in special]
            assert len(spellings) == len(set(spellings))
