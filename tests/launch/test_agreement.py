"""Processes that start from different configs or versions say so, all of them, and nothing else happens."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from llmfactory.core.errors import UserError
from llmfactory.launch import agreement
from llmfactory.launch.agreement import code_digest, insist_on_agreement, verdict
from llmfactory.launch.watchdog import Peers

CONFIG = {"seed": 0, "optim": {"lr": 0.1, "betas": [0.9, 0.95]}}


def ask(configs: list[dict]) -> list[str | None]:
    """What each process of a job says; threads stand for processes."""
    store, said = dist.HashStore(), [None] * len(configs)

    def one(rank: int) -> None:
        try:
            insist_on_agreement(Peers(store, rank, len(configs)), configs[rank], 20.0)
        except UserError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_the_same_everywhere_is_right():
    assert ask([CONFIG] * 3) == [None] * 3


def test_all_processes_name_the_keys_that_differ():
    other = {"seed": 0, "optim": {"lr": 0.2, "betas": [0.9, 0.95]}, "toy": True}
    said = ask([CONFIG, other, CONFIG, other])
    assert len(set(said)) == 1
    assert "optim.lr: 0.1 on " in said[0]
    assert "(rank 0), 0.2 on " in said[0]
    assert "(ranks 1, 3)" in said[0]
    assert "toy: None on " in said[0]
    assert "seed" not in said[0]


def test_versions_are_compared(monkeypatch):
    numbers = iter(["2.13.0", "2.12.1"])
    lock = threading.Lock()

    def versions():
        with lock:
            return {"version of torch": next(numbers)}

    monkeypatch.setattr(agreement, "versions", versions)
    said = ask([CONFIG, CONFIG])
    assert "version of torch: '2.1" in said[0]
    assert said[0] == said[1]


def test_a_long_list_is_cut():
    other = {f"key{number}": [1, 2] for number in range(14)}
    text = verdict([{"host": "a", "other": {}}, {"host": "b", "other": other}])
    assert text.count("key") == agreement.SHOWN
    assert "and 4 more" in text


def test_the_code_is_part_of_the_version(tmp_path, monkeypatch):
    assert code_digest() in agreement.versions()["version of llmfactory"]
    package = tmp_path / "llmfactory" / "launch"
    package.mkdir(parents=True)
    monkeypatch.setattr(agreement, "__file__", str(package / "agreement.py"))
    (package / "agreement.py").write_text("a = 1\n")
    before = code_digest()
    (package / "agreement.py").write_text("a = 2\n")
    assert code_digest() != before


@pytest.mark.parametrize("missing", [1])
def test_a_process_that_does_not_come_ends_the_wait(missing):
    store = dist.HashStore()
    with pytest.raises(dist.DistStoreError):
        insist_on_agreement(Peers(store, 0, 1 + missing), CONFIG, 0.1)
