"""A port that another program holds is refused within seconds; one that torch's store holds is the job's."""

from __future__ import annotations

import socket

import pytest
import torch.distributed as dist

from llmfactory.core.errors import UserError
from llmfactory.launch import port
from llmfactory.launch.port import insist_port_is_ours, main, split_endpoint


def test_a_stranger_on_the_port(monkeypatch, capsys):
    monkeypatch.setattr(port, "PROBE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as stranger:  # listens and never answers
        number = stranger.getsockname()[1]
        with pytest.raises(
            UserError, match=f"port {number} of 127.0.0.1 is used by another program.*launch.endpoint=127.0.0.1:{number + 1}"
        ):
            insist_port_is_ours(f"127.0.0.1:{number}")
        assert main([f"127.0.0.1:{number}"]) == 1
        assert "another program" in capsys.readouterr().err
    insist_port_is_ours(f"127.0.0.1:{number}")
    assert main([f"127.0.0.1:{number}"]) == 0


def test_the_store_of_the_job_itself():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    insist_port_is_ours(f"127.0.0.1:{store.port}")


def test_another_machine_s_port_is_not_judged():
    insist_port_is_ours("192.0.2.1:1")
    insist_port_is_ours("no-such-host.invalid:29500")


def test_hosts_with_colons():
    assert split_endpoint("node0:29500") == ("node0", 29500)
    assert split_endpoint("::1:29500") == ("::1", 29500)
