"""Who computes what (kernel/choice.py): one key for all parts, and whole models by Triton's kernels as by PyTorch's."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job
from twice import DEVICES

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.core.kernel import Kernel
from llmfactory.kernel import choice
from llmfactory.kernel.choice import insist_on, way
from llmfactory.model.part import Part, use
from llmfactory.model.skeleton import Skeleton
from llmfactory.precision.spec import Bf16Mixed, Fp64, PrecisionSpec
from llmfactory.run.fit import build_stage, fit
from llmfactory.stage.initial import model_of

SMALL = ["model.vocab_size=257", "model.dim=16", "model.n_layers=1", "model.attention.n_heads=2", "model.ffn.hidden=17"]
SMALL += ["model.max_positions=64", "data.seq_len=64"]
MODELS = {
    "llama": ["model=llama_tiny"],
    "gpt2": ["model=gpt2_tiny"],
    "moe": ["model=llama_tiny", "model/ffn=moe", "model/position=rope_chatglm2"],
}


def test_the_key_reaches_all_parts(tmp_path: Path) -> None:
    """Of a model that is trained and of one that is used."""
    job = toy_job(tmp_path, trainer__kernel=Kernel.triton)
    for model in (build_stage(job, isolated=True).model, model_of(job)):
        parts = [part for part in model.modules() if isinstance(part, Part)]
        assert len(parts) > 5
        assert all(part.kernel is Kernel.triton for part in parts)


def test_auto_takes_pytorch_s_on_the_cpu() -> None:
    x = torch.zeros(2)
    assert way(Kernel.auto, x) is Kernel.torch
    for kernel in (Kernel.torch, Kernel.triton, Kernel.compile):
        assert way(kernel, x) is kernel


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    insist_on(Kernel.auto, "cpu")
    insist_on(Kernel.triton, "cuda")
    with pytest.raises(UserError, match="TRITON_INTERPRET=1"):
        insist_on(Kernel.triton, "cpu")
    monkeypatch.setattr(choice, "has_triton", lambda: False)
    with pytest.raises(MissingExtra, match=r"llmfactory\[triton\]"):
        insist_on(Kernel.triton, "cuda")


def test_nothing_else_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model trains where triton cannot be imported."""
    real = builtins.__import__

    def without(name: str, *rest, **more):
        if name == "triton" or name.startswith("triton."):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    loss_and_gradients("llama", Kernel.torch, "cpu")


def loss_and_gradients(name: str, kernel: Kernel, device: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Of packed rows under a small model whose weights are all large enough to matter."""
    model: Skeleton = compose_job([*MODELS[name], *SMALL]).job.model.build().to(dtype)
    make = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = (0.4 * torch.randn(weight.shape, generator=make, dtype=torch.float64)).to(dtype)
    model.to(device)
    use(model, kernel)
    tokens = torch.randint(257, (2, 17), generator=make).to(device)
    segments = torch.ones(2, 17, dtype=torch.int64, device=device)
    segments[0, 9:] = 2
    batch = {"tokens": tokens, "positions": torch.arange(17, device=device).expand(2, -1), "segments": segments}
    loss = model.head.cross_entropy(model(tokens, model.context(batch)), tokens.roll(-1, 1), label_smoothing=0.1)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_of_whole_models(name: str, device: str) -> None:
    plain, ours = (loss_and_gradients(name, kernel, device) for kernel in (Kernel.torch, Kernel.triton))
    assert plain.keys() == ours.keys()
    for key, gradient in plain.items():
        # Of a bias of keys, which softmax does not see, there is nothing but rounding.
        assert (ours[key] - gradient).norm() <= 1e-9 * max(float(gradient.norm()), 1e-3), key


def train(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    fitted = fit(job, prepared(job), folder, Memory(), Notes())
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def job_of(folder: Path, kernel: Kernel, precision: PrecisionSpec, **changes) -> Job:
    short = {"trainer__max_steps": 2, "trainer__eval_every": None, "trainer__save_every": None, "trainer__batch_size": 1}
    changes |= {"data__seq_len": 9, "model__n_layers": 1}
    return toy_job(folder, precision=precision, trainer__kernel=kernel, **short, **changes)


@pytest.mark.skipif(not choice.interpreted(), reason="on the CPU")
@pytest.mark.parametrize("precision", [Fp64(), Bf16Mixed()], ids=lambda spec: type(spec).__name__)
def test_two_steps_are_the_same(precision: PrecisionSpec, tmp_path: Path) -> None:
    """With recomputation: the kernels run again in the backward pass, on the same numbers."""
    changes = {"parallel__recompute": True} if isinstance(precision, Fp64) else {}
    plain = train(job_of(tmp_path, Kernel.torch, precision), tmp_path / "torch")
    ours = train(job_of(tmp_path, Kernel.triton, precision, **changes), tmp_path / "triton")
    # Of bfloat16, AdamW turns a gradient that rounds to the other side of zero into a step the other way.
    tolerance = 1e-9 if isinstance(precision, Fp64) else 0.05
    for name, weight in plain.items():
        assert (ours[name] - weight).norm() <= tolerance * weight.norm(), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_operation_by_operation() -> None:
    plain, ours = (loss_and_gradients("llama", kernel, "cpu", torch.float32) for kernel in (Kernel.torch, Kernel.compile))
    for key, gradient in plain.items():
        assert (ours[key] - gradient).norm() <= 1e-4 * gradient.norm(), key
