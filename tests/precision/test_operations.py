"""In which number format each operation of a training step computes, read from the operations themselves (docs/precision.md)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_job import filled, prepared, toy_job

from llmfactory.parallel.shard import add_gradients_in
from llmfactory.precision.spec import Bf16Mixed, Bf16True, Fp8, Fp16Mixed, Fp32, Fp64, Int8Mixed, PrecisionSpec, Recipe, Rounding
from llmfactory.run.fit import build_stage

WIDE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
OPTIONS: dict[str, tuple[PrecisionSpec, torch.dtype, torch.dtype, torch.dtype, set[torch.dtype]]] = {
    "fp64": (Fp64(), torch.float64, torch.float64, torch.float64, set()),
    "fp32": (Fp32(), WIDE, WIDE, WIDE, set()),
    "bf16_mixed": (Bf16Mixed(), WIDE, BRAIN, WIDE, set()),
    "fp16_mixed": (Fp16Mixed(init_scale=1024.0), WIDE, HALF, WIDE, set()),
    "bf16_true": (Bf16True(), BRAIN, BRAIN, BRAIN, set()),
    "bf16_true master": (Bf16True(keep=Rounding.master), BRAIN, BRAIN, WIDE, set()),
    "fp8 tensor_wise": (Fp8(emulate=True), WIDE, BRAIN, WIDE, {E4M3, E5M2}),
    "fp8 row_wise": (Fp8(emulate=True, recipe=Recipe.row_wise), WIDE, BRAIN, WIDE, {E4M3}),
    "int8_mixed": (Int8Mixed(), WIDE, BRAIN, WIDE, {torch.int8}),
}
"""What is stored, what is multiplied outside of 8-bit maps, the optimizer's state, and 8-bit numbers."""
WIDE_ONES = {
    "norms": {"pow", "rsqrt", "_fused_rms_norm", "_fused_rms_norm_backward"},
    "softmax of the loss": {"_log_softmax", "_softmax", "logsumexp", "exp", "exp_", "log", "log_"},
    "sums": {"sum", "mean"},
}
"""Operations by what they are done for; how a kernel is made of them may change."""
TABLES = {"sin", "cos"}
PRODUCTS = {"mm", "addmm", "bmm"}


class Seen(TorchDispatchMode):
    """By operation, the formats of the floating-point tensors that it is given, and that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, set[torch.dtype]] = defaultdict(set)
        self.found: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.given[name] |= formats((args, kwargs))
        self.found[name] |= formats(out)
        return out


def formats(tree: Any) -> set[torch.dtype]:
    tensors = [one for one in tree_leaves(tree) if isinstance(one, Tensor)]
    return {one.dtype for one in tensors if one.is_floating_point() or one.dtype is torch.int8}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Path, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("operations")
    job = toy_job(folder)
    data = prepared(job)
    batch = job.data.pack.build(data.train, job.data.seq_len).read(np.arange(2))
    return lambda: (folder, batch)


@pytest.mark.parametrize("name", OPTIONS)
def test_formats_of_a_step(name: str, rows: Callable[[], tuple[Path, dict[str, Tensor]]]) -> None:
    precision, stored, multiplied, state, eight = OPTIONS[name]
    sums_in = torch.promote_types(stored, WIDE)
    folder, batch = rows()
    job = toy_job(folder, precision=precision)
    stage, plugin = filled(build_stage(job, False)), precision.build("cpu")
    if plugin.gradients is not None:
        add_gradients_in(stage.root, plugin.gradients)
    between: set[torch.dtype] = set()
    for block in stage.model.blocks:
        block.register_forward_hook(lambda _, given, y: between.update((given[0].dtype, y.dtype)))
    with Seen() as seen:
        with plugin.forward_context():
            loss = stage.root(batch)["loss"]
        plugin.scaled(loss).backward()

    assert loss.dtype is sums_in
    for what, operations in WIDE_ONES.items():
        there = operations & seen.given.keys()
        assert there, what
        for operation in there:
            assert seen.given[operation] == seen.found[operation] == {sums_in}, operation
    for operation in TABLES & seen.given.keys():
        assert seen.given[operation] <= {WIDE, torch.float64}, operation
    # Attention: operands as products have them; the logarithm of the softmax's sum comes out wide.
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert seen.given[attention] == {multiplied}
    assert seen.found[attention] == {multiplied, sums_in}
    products = set().union(*(seen.given[operation] for operation in PRODUCTS))
    assert products == ({multiplied, WIDE} if isinstance(precision, Fp8) else {multiplied})
    cast = {one for one in seen.found["_to_copy"] if one.itemsize == 1}
    assert cast == eight
    assert ("_int_mm" in seen.given) == (eight == {torch.int8})
    assert between == {stored}
    parameters = list(stage.model.parameters())
    assert {one.dtype for one in parameters} == {stored}
    assert {one.grad.dtype for one in parameters if one.grad is not None} == {sums_in}
    assert all(one.grad is not None for one in parameters)

    optimizer = stage.configure_optimizers()
    optimizer.step()
    kept = {key: value for one in parameters for key, value in optimizer.state[one].items() if value.shape == one.shape}
    assert {key: value.dtype for key, value in kept.items()} == {
        **dict.fromkeys(("exp_avg", "exp_avg_sq"), state),
        **({"master": WIDE} if name.endswith("master") else {}),
    }
    assert {one.dtype for one in parameters} == {stored}
