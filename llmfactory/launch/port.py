"""Is the port where machines are to meet free, or held by another machine's share of the same job?

Torch takes whatever listens there for its store, and waits for minutes for a stranger's answer.

`python -m llmfactory.launch.port host:port` is the same question, from a shell.
"""

from __future__ import annotations

import errno
import socket
import subprocess
import sys

from llmfactory.core.errors import UserError

PROBE_S = 30.0
"""Seconds within which torch's store answers on this very machine, the start of a process included."""
CLIENT = "import sys; from torch.distributed import TCPStore; TCPStore(sys.argv[1], int(sys.argv[2]), is_master=False)"


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """`host:port`."""
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


def insist_port_is_ours(endpoint: str) -> None:
    """Raises UserError if another program listens on a port of this machine. Of other machines' ports nothing is known."""
    host, port = split_endpoint(endpoint)
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # another machine's address, or a name that cannot be resolved yet
            return
    try:  # in a process of its own: a client that gets no answer, or a wrong one, neither ends nor keeps quiet
        command = [sys.executable, "-c", CLIENT, host, str(port)]
        answered = subprocess.run(command, timeout=PROBE_S, capture_output=True).returncode == 0
    except subprocess.TimeoutExpired:
        answered = False
    if not answered:
        other = f"launch.endpoint={host}:{port + 1}"
        raise UserError(f"port {port} of {host} is used by another program; take a free one: {other}")


def main(arguments: list[str]) -> int:
    """The exit code."""
    try:
        insist_port_is_ours(arguments[0])
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
