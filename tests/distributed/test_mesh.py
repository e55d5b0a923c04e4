"""A process that never comes ends the others' wait after parallel.timeout_s."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

WAIT = """
import torch
from llmfactory.parallel.mesh import open_world
from llmfactory.parallel.spec import Mesh
with open_world(Mesh(dp_replicate=None, timeout_s=2.0), "cpu"):
    pass
"""


@pytest.mark.dist
def test_a_lost_process_ends_the_wait() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", WAIT], env={**os.environ, **place}, capture_output=True, text=True, timeout=120
    )  # not the library's own 30 minutes
    assert done.returncode != 0
    assert "imed out" in done.stderr
