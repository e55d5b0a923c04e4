"""The table of names from elsewhere leads only to keys and options that exist."""

from __future__ import annotations

import shlex

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.fields import field_types
from llmfactory.config.names import FOREIGN
from llmfactory.config.register import classes, groups
from llmfactory.core.errors import ConfigError, Problem


def every_key() -> set[str]:
    """Dotted keys of every option of every group, at the group's usual place."""
    keys = set(compose_job([]).origins)
    for group in groups():
        for cls in classes(group).values():
            keys |= {f"{group.replace('/', '.')}.{name}" for name in field_types(cls)}
    return keys


def test_keys_exist() -> None:
    keys = every_key()
    assert [name for name, meaning in FOREIGN.items() if "=" not in meaning and " " not in meaning and meaning not in keys] == []


@pytest.mark.parametrize("name", FOREIGN)
def test_every_name_gets_an_answer_that_composes(name: str) -> None:
    """The name itself is unknown here, and what is suggested instead is accepted, as far as it stands on its own."""
    with pytest.raises(ConfigError) as raised:
        compose_job([f"{name}=1"])
    (problem,) = raised.value.problems
    assert problem.path == name
    assert problem.repair
    if problem.repair.startswith("init="):
        return
    found: tuple[Problem, ...] = ()
    try:
        compose_job(shlex.split(problem.repair))
    except ConfigError as error:
        found = error.problems
    # A value may be wrong (1 is no file), a rule may say what else is needed; the keys themselves are right.
    assert not [other for other in found if "no such key" in other.reason or "no option" in other.reason]


def test_the_table_is_of_other_peoples_names() -> None:
    assert set(FOREIGN) & every_key() == set()
    assert len(FOREIGN) >= 80
