"""Catalogue of hardware: what a device can hold, compute and send, as far as a plan (`stage=plan`, `parallel=auto`) needs to know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between


@dataclass(kw_only=True, slots=True)
class HardwareSpec(Spec):
    """Base of the hardware. It changes no training; plans are made with it."""

    price_per_hour: float | None = None
    """What one device costs an hour, in a currency of your choice; None: no costs are told."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0.0, "price_per_hour")


@dataclass(kw_only=True, slots=True)
class Accelerator(HardwareSpec):
    """A device by its data sheet, in a machine of several. Speeds are of dense numbers (no structured sparsity), bandwidths of one
    direction."""

    names: list[str] = field(default_factory=list)
    """What PyTorch calls the device, or how these names begin: `hardware=detected` goes by them."""
    memory_gib: float
    """Memory, in GiB."""
    usable: float = 0.92
    """Share of the memory that a plan may fill. The rest is the driver's and the communication library's, and is lost in pieces
    that are too small."""
    fp64_tflops: float | None = None
    """Peak of matrix products in float64, in 10^12 operations a second; None: the device has none."""
    fp32_tflops: float
    """The same in float32, without TF32, which PyTorch does not use unless it is told to."""
    bf16_tflops: float | None = None
    """The same in bfloat16, accumulated in float32."""
    fp16_tflops: float | None = None
    """The same in float16, accumulated in float32."""
    efficiency: float = 0.75
    """Share of the peak that large matrix products reach."""
    memory_gb_per_s: float
    """Bandwidth of the memory, in 10^9 bytes a second."""
    devices_per_node: int
    """Devices of a machine; ranks fill one machine after the other."""
    link_gb_per_s: float
    """From a device to others of its machine, in 10^9 bytes a second, one direction."""
    link_latency_us: float
    """Of a message within a machine, in microseconds."""
    network_gb_per_s: float
    """From a device to other machines, in 10^9 bytes a second, one direction."""
    network_latency_us: float
    """Of a message between machines, in microseconds."""
    host_gb_per_s: float
    """Between a device and the host's memory, in 10^9 bytes a second, one direction: what offloading pays."""

    def problems(self) -> Iterator[Problem]:
        yield from HardwareSpec.problems(self)
        yield from between(self, 0.1, 1.0, "usable", "efficiency")
        yield from at_least(self, 1, "devices_per_node")
        yield from at_least(self, 0.0, "link_latency_us", "network_latency_us")
        positive = ("memory_gib", "fp64_tflops", "fp32_tflops", "bf16_tflops", "fp16_tflops", "memory_gb_per_s")
        yield from above(self, 0.0, *positive, "link_gb_per_s", "network_gb_per_s", "host_gb_per_s", repair=1)


@dataclass(kw_only=True, slots=True)
class Detected(HardwareSpec):
    """The option whose device is found here, when a plan is made: by the name of the first GPU, else `cpu`."""


@dataclass(kw_only=True, slots=True)
class Measured(HardwareSpec):
    """A device by its data sheet, but with the messages' speed as measured by `stage=bench_comm`."""

    file: str
    """What `stage=bench_comm` wrote."""
    device: str | None = None
    """Option of hardware that the other numbers are of; None: as `detected`."""

    def problems(self) -> Iterator[Problem]:
        yield from HardwareSpec.problems(self)
        if self.device in ("measured", "detected"):
            yield Problem("device", self.device, "must be an option with numbers of its own", "device=null")
