"""Which of several failures is raised, and as what."""

from __future__ import annotations

import json

import pytest

from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.launch.failure import (
    UNBEGUN,
    Failure,
    first_error,
    forget,
    from_text,
    lost_connection,
    of_error,
    outcome,
    saved_failures,
)


def failure(rank: int, time: float, *, follows: bool = False, message: str | None = "it broke") -> Failure:
    return Failure(
        rank=rank, host="here", time=time, log=f"rank_{rank}.txt", follows=follows, problems=None, message=message, trace="E\n"
    )


def caught(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException as raised:
        return of_error(raised, 3, None)


def test_an_error_comes_back_as_its_kind():
    wrong = ConfigError([Problem("optim.lr", -1.0, "must be positive", "optim.lr=0.1")])
    assert str(from_text(caught(wrong).as_text()).error()) == str(wrong)
    told = from_text(caught(UserError("the disk is full")).as_text()).error()
    assert isinstance(told, UserError)
    assert str(told).startswith("the disk is full\n(rank 3 on ")
    bug = caught(ZeroDivisionError("by accident")).error()
    assert isinstance(bug, RuntimeError)
    assert "Traceback" in str(bug)
    assert isinstance(caught(UserError(UNBEGUN)).error(), KeyboardInterrupt)


def test_a_lost_connection_is_a_consequence():
    assert caught(RuntimeError("[gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1")).follows
    assert not caught(RuntimeError("shapes differ")).follows
    assert not lost_connection(UserError("Broken pipe"))  # said with care


def test_the_first_of_the_last_attempt_that_follows_no_other(tmp_path):
    failure(0, 1.0, message="earlier attempt").save(tmp_path, 0)
    failure(0, 2.0, follows=True).save(tmp_path, 1)
    failure(1, 4.0, message="late").save(tmp_path, 1)
    failure(2, 3.0, message="the cause").save(tmp_path, 1)
    found = saved_failures(tmp_path)
    assert [one.rank for one in found] == [2, 1, 0]
    assert str(first_error(found, {1: 1, 2: 1}, tmp_path)) == "the cause\n(rank 2 on here; its log: rank_2.txt)"
    forget(tmp_path)
    assert saved_failures(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "text"),
    [(-9, "rank 1 was killed by SIGKILL (out of memory?)"), (-11, "rank 1 was killed by SIGSEGV"), (3, "with exit code 3")],
)
def test_a_process_without_a_word_comes_before_those_that_lost_it(tmp_path, code, text):
    error = first_error([failure(0, 1.0, follows=True, message=None)], {0: 1, 1: code}, tmp_path)
    assert text in str(error)
    assert str(tmp_path / "rank_1.txt") in str(error)
    assert "it broke" in str(first_error([failure(0, 1.0)], {0: 1, 1: -15}, tmp_path))  # rank 1 was ended because of it


def test_a_process_that_was_ended_for_another_is_not_the_first(tmp_path):
    told = [failure(1, 1.0, follows=True, message="rank 1 is gone")]
    assert "rank 1 is gone" in str(first_error(told, {0: 1}, tmp_path))
    assert "was killed by SIGKILL" in str(first_error(told, {0: 1, 2: -9}, tmp_path))


def test_what_a_job_from_a_saved_config_left(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished"}))
    assert outcome(tmp_path, logs, 0, "the job") == {"status": "finished"}
    with pytest.raises(UserError, match=f"the job ended with exit code 7; see {logs}"):
        outcome(tmp_path, logs, 7, "the job")
    failure(1, 1.0).save(logs, 0)
    with pytest.raises(UserError, match="it broke"):
        outcome(tmp_path, logs, 1, "the job")
