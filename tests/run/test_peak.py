"""The peak is a rate of this machine, whatever the load: only its order of magnitude can be tested."""

from __future__ import annotations

import pytest
import torch

from llmfactory.run import peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matmul_peak_is_a_plausible_rate(dtype, monkeypatch):
    monkeypatch.setattr(peak, "SECONDS", 0.05)
    assert 1e8 < peak.matmul_peak(torch.device("cpu"), dtype) < 1e14
