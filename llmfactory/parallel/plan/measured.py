"""The file that `stage=bench_comm` writes and `hardware=measured` reads: how fast messages really are.

A YAML file:

    device: NVIDIA H100 80GB HBM3
    backend: nccl
    processes: 16
    devices_per_node: 8
    collectives:
      all_reduce: {latency_s: 2.1e-5, bandwidth_bytes_per_s: 3.6e+11}
      all_gather: ...

A message of n bytes takes latency_s + (bytes on the wire) / bandwidth_bytes_per_s, where the bytes on the wire of a process are
those of the ring algorithms, so that the bandwidth is what nccl-tests calls the bus bandwidth: 2 (p - 1) / p n for an all-reduce
of n bytes over p processes, (p - 1) / p n for an all-gather to n, a reduce-scatter of n and an all-to-all of n, n for one
message from one process to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from llmfactory.core.errors import UserError

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
"""Names of what is measured."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one kind of message."""

    latency_s: float
    """Seconds that an empty message takes."""
    bandwidth_bytes_per_s: float
    """Bytes on the wire of one process, a second, for long messages."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured in one run, over all of its processes at once."""

    device: str
    """Name of the device, as torch says it, or `cpu`."""
    backend: str
    """`nccl`, `gloo`, ..."""
    processes: int
    """Number of processes that took part."""
    devices_per_node: int
    """How many of them on one machine."""
    collectives: Mapping[str, Speed]
    """By name, all of `COLLECTIVES`."""

    @property
    def crosses_nodes(self) -> bool:
        """Whether the network was measured, and not the links within a machine."""
        return self.processes > self.devices_per_node

    def to_plain(self) -> dict[str, Any]:
        """What the file holds."""
        speeds = {name: asdict(self.collectives[name]) for name in COLLECTIVES}
        head = {key: getattr(self, key) for key in ("device", "backend", "processes", "devices_per_node")}
        return {**head, "collectives": speeds}


def read_measurement(path: Path) -> Measurement:
    """The file's content. Raises UserError where it is no such file."""
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}; stage=bench_comm writes such a file") from error
    try:
        speeds = {name: _speed(plain["collectives"][name]) for name in COLLECTIVES}
        processes, per_node = (int(plain[key]) for key in ("processes", "devices_per_node"))
        if processes < 2 or per_node < 1:
            raise ValueError(f"{processes} processes, {per_node} a node: nothing was sent")
        return Measurement(str(plain["device"]), str(plain["backend"]), processes, per_node, speeds)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is no file of stage=bench_comm: {reason}") from error


def _speed(plain: Mapping[str, Any]) -> Speed:
    speed = Speed(float(plain["latency_s"]), float(plain["bandwidth_bytes_per_s"]))
    if not speed.latency_s >= 0 or not speed.bandwidth_bytes_per_s > 0:
        raise ValueError(f"a latency of {speed.latency_s} s and a bandwidth of {speed.bandwidth_bytes_per_s} bytes/s")
    return speed
