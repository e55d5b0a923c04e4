"""How fast a device computes and sends: a data sheet, or a data sheet with measured messages, in one form.

A group of processes within a machine talks over its links. One that crosses machines talks over their network adapters: each
device has its own, and a ring through a machine may use those of all members that stand there, so a process has at best the
adapters' bandwidth times the members a machine, and never more than its link (the hierarchical rings of NCCL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmfactory.parallel.plan.measured import Measurement, Speed
from llmfactory.parallel.plan.spec import Accelerator

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """One device of many, in machines of `devices_per_node`."""

    name: str
    memory: float
    """Bytes that a plan may fill."""
    flops: Mapping[str, float]
    """Operations a second that large products reach, by format: fp64, fp32, bf16, fp16; missing: the device has none."""
    peak: Mapping[str, float]
    """The same by the data sheet."""
    memory_bandwidth: float
    """Bytes a second."""
    host_bandwidth: float
    """Bytes a second between a device and the host."""
    devices_per_node: int
    link: Speed
    """Within a machine."""
    network: Speed
    """Between machines, of one device."""
    price_per_hour: float | None
    measured: Measurement | None = None
    is_cpu: bool = False

    def seconds(self, kind: str, wire: float, members: int, per_node: int) -> float:
        """Seconds of one message.

        Args:
            kind: one of `measured.COLLECTIVES`.
            wire: bytes that one process sends, by the ring algorithms.
            members: processes of the group.
            per_node: how many of them stand on one machine.
        """
        if members < 2 or not wire:
            return 0.0
        crosses = per_node < members
        hops = 1 if kind == "send" else math.ceil(math.log2(members)) * (2 if kind == "all_reduce" else 1)
        found = self.measured
        if found is not None and found.crosses_nodes == crosses:
            speed, known = found.collectives[kind], max(1, math.ceil(math.log2(found.processes)))
            stretch = 1.0 if kind == "send" else max(1.0, math.log2(members) / known)
            return speed.latency_s * stretch + wire / speed.bandwidth_bytes_per_s
        speed = self.network if crosses else self.link
        bandwidth = speed.bandwidth_bytes_per_s
        if crosses and kind != "send":
            bandwidth = min(self.link.bandwidth_bytes_per_s, bandwidth * max(1, per_node))
        return hops * speed.latency_s + wire / bandwidth


def machine(spec: Accelerator, name: str, price: float | None = None, measured: Measurement | None = None) -> Machine:
    """The numbers of a data sheet in bytes, seconds and operations."""
    tera = {"fp64": spec.fp64_tflops, "fp32": spec.fp32_tflops, "bf16": spec.bf16_tflops, "fp16": spec.fp16_tflops}
    peak = {name: 1e12 * value for name, value in tera.items() if value is not None}
    return Machine(
        name=name,
        memory=spec.memory_gib * GIB * spec.usable,
        flops={name: spec.efficiency * value for name, value in peak.items()},
        peak=peak,
        memory_bandwidth=1e9 * spec.memory_gb_per_s,
        host_bandwidth=1e9 * spec.host_gb_per_s,
        devices_per_node=spec.devices_per_node if measured is None else measured.devices_per_node,
        link=Speed(1e-6 * spec.link_latency_us, 1e9 * spec.link_gb_per_s),
        network=Speed(1e-6 * spec.network_latency_us, 1e9 * spec.network_gb_per_s),
        price_per_hour=spec.price_per_hour if price is None else price,
        measured=measured,
        is_cpu="cpu" in spec.names,
    )
