"""Decoding step by step gives the logits of the full forward, whatever the positions and the attention."""

from __future__ import annotations

import pytest
import torch

from llmfactory.inference.cache import KvCache
from llmfactory.inference.decoding import columns
from llmfactory.model.attention.spec import Gqa, Mla, Relative, TwoStream
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.position.scaling.spec import DynamicNtk, Llama3, Yarn
from llmfactory.model.position.spec import Alibi, Learned, Learned2d, None_, Rope, Rope2d, Sinusoidal, T5Bias
from llmfactory.model.position.spec import Relative as RelativePosition

LENGTH = 14
HEADS = {"n_heads": 6, "n_kv_heads": 2}
LATENT = {"n_heads": 3, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
PARTS = {
    "none": {"position": None_()},
    "learned": {"position": Learned(offset=2)},
    "learned2d": {"position": Learned2d()},
    "sinusoidal": {"position": Sinusoidal()},
    "rope_share": {"position": Rope(share=0.5, interleaved=True)},
    "rope_yarn": {"position": Rope(scaling=Yarn(factor=4.0, trained_positions=8))},
    "rope_llama3": {"position": Rope(scaling=Llama3(factor=4.0, trained_positions=8))},
    "rope_dynamic": {"position": Rope(scaling=DynamicNtk(factor=4.0, trained_positions=LENGTH))},
    "rope2d": {"position": Rope2d()},
    "alibi": {"position": Alibi()},
    "t5_bias": {"position": T5Bias(n_buckets=8, max_distance=10)},
    "window": {"attention": Gqa(**HEADS, window=4)},
    "window_alibi": {"attention": Gqa(**HEADS, window=4), "position": Alibi()},
    "softcap": {"attention": Gqa(**HEADS, softcap=3.0, window=5, qk_norm=RmsNorm(), scale=0.7)},
    "mla": {"attention": Mla(**LATENT)},
    "mla_alibi": {"attention": Mla(**LATENT), "position": Alibi()},
    "relative": {"attention": Relative(n_heads=6), "position": RelativePosition(clamp=6)},
    "two_stream": {"attention": TwoStream(n_heads=6), "position": RelativePosition()},
}


@pytest.mark.parametrize("padding", [[0, 0], [0, 5]], ids=["", "padded"])
@pytest.mark.parametrize("parts", PARTS)
def test_steps_equal_the_whole(parts, padding, llama, build):
    """A prompt of 6 columns, one of 3 more at once, then one by one; float64 to 1e-9 of the largest logit."""
    model = build(llama(**PARTS[parts])).eval()
    tokens = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.head(model(tokens, columns(padding, 0, LENGTH, tokens.device)))
        state, pieces, start = KvCache(LENGTH), [], 0
        for end in (6, 9, *range(10, LENGTH + 1)):
            context = columns(padding, start, end, tokens.device).with_(state=state)
            pieces.append(model.head(model(tokens[:, start:end], context)))
            start = end
    got = torch.cat(pieces, 1)
    atol = 1e-9 * float(whole.abs().max())
    for row, first in enumerate(padding):
        torch.testing.assert_close(got[row, first:], whole[row, first:], rtol=0, atol=atol)


@pytest.mark.parametrize("parts", PARTS)
def test_a_padded_row_equals_itself_alone(parts, llama, build):
    model = build(llama(**PARTS[parts])).eval()
    tokens = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = model(tokens, columns([0, 5], 0, LENGTH, tokens.device))
        alone = model(tokens[1:, 5:], columns([0], 0, LENGTH - 5, tokens.device))
    torch.testing.assert_close(both[1:, 5:], alone, rtol=0, atol=1e-9 * float(alone.abs().max()))


@pytest.mark.parametrize("parts", ["window", "alibi", "t5_bias", "rope_yarn", "mla", "softcap"])
def test_compiles_without_a_break(parts, llama, build):
    """One graph for the whole forward, with equal numbers and gradients (run eagerly here)."""
    torch.compiler.reset()  # models of other tests count as recompilations of the same code
    model = build(llama(n_layers=1, **PARTS[parts]))
    tokens = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        hidden = run(tokens, columns([0, 0], 0, 9, tokens.device))
        results.append((hidden, *torch.autograd.grad(hidden.square().sum(), list(model.blocks.parameters()))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.detach().abs().max()))
