"""float32, and TF32 where there is any."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import UserError
from llmfactory.precision.spec import Fp32


def test_no_gpu_no_tf32() -> None:
    with pytest.raises(UserError, match="use precision"):
        Fp32(tf32=True).build("cpu")
    assert Fp32(tf32=True).build("meta").products is None, "only the shapes of things"


def test_tf32_is_switched_on_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's switch is the process's: each run sets it, so that none inherits what another asked for."""
    said: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    Fp32(tf32=True).build("cuda")
    Fp32().build("cuda")
    Fp32().build("cpu")
    assert said == ["high", "highest"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match="TF32"):
        Fp32(tf32=True).build("cuda")


@pytest.mark.gpu
def test_products_are_rounded() -> None:
    x = torch.full((64, 64), 1 + 2**-12, device="cuda")
    found = {}
    for tf32 in (True, False):
        Fp32(tf32=tf32).build("cuda")
        found[tf32] = (x @ torch.eye(64, device="cuda"))[0, 0].item()
    assert found == {True: 1.0, False: 1 + 2**-12}
