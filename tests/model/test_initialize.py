from __future__ import annotations

import pytest
import torch

from llmfactory.core.sharding import Normal, name_seed
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.declarations import declarations
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize


def weights(spec, seed=0, **options):
    model = spec.build()
    initialize(model, seed, **options)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_each_parameter_is_a_function_of_seed_and_name(family):
    spec = family()
    for name, got in weights(spec, seed=5).items():
        start = declarations(spec.build())[name].start
        if isinstance(start, Normal):
            generator = torch.Generator().manual_seed(name_seed(5, name))
            assert torch.equal(got, torch.empty(got.shape).normal_(0.0, start.std, generator=generator)), name
        else:
            assert torch.equal(got, torch.full(got.shape, start.value)), name


def test_independent_of_neighbours_and_of_the_global_generator(family):
    """More layers, another vocabulary, an own head, or what else was drawn: the common parameters are bit-equal."""
    first = weights(family(depth_scaled_init=False))
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    other = weights(family(depth_scaled_init=False, n_layers=5, head=Lm(tied=False, bias=True)))
    assert set(first) < set(other)
    assert all(torch.equal(first[name], other[name]) for name in first)
    built = family().build()
    state = torch.random.get_rng_state()
    initialize(built, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_gives_other_matrices(family):
    first, second = weights(family(), 0), weights(family(), 1)
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert same == {name for name in first if first[name].dim() == 1}


def test_independent_of_the_layout(family):
    """Cut by `place` into two ranks' parts: bit-equal to the whole; the whole tensor arrives in float32 on the CPU."""
    whole = weights(family())
    for rank in range(2):
        parts = {}
        with torch.device("meta"):
            model = family().build()
        names = {id(parameter): name for name, parameter in model.named_parameters()}

        def place(parameter, full, parts=parts, names=names, rank=rank):
            assert (full.dtype, full.device.type) == (torch.float32, "cpu")
            parts[names[id(parameter)]] = full.tensor_split(2)[rank].clone()

        initialize(model, 0, place)
        assert all(torch.equal(parts[name], whole[name].tensor_split(2)[rank]) for name in whole)
        assert set(parts) == set(whole)


def test_dtype_changes_no_number(family):
    model = family().build().double()
    initialize(model, 0)
    assert all(torch.equal(p, weights(family())[name].double()) for name, p in model.named_parameters())


@pytest.mark.parametrize("scaled", [True, False])
def test_depth_scaling(family, scaled):
    """Matrices that write to the residual stream start smaller by sqrt(2 n_layers) (GPT-2, section 2.3), no others do."""
    spec = family(dim=120, n_layers=8, init_std=0.1, depth_scaled_init=scaled, attention=Gqa(n_heads=6, bias=True))
    for name, tensor in weights(spec).items():
        if tensor.dim() == 1:
            continue
        writes = name.endswith(("attention.o.weight", "ffn.down.weight"))
        want = 0.1 / 4 if writes and scaled else 0.1
        assert abs(float(tensor.std()) / want - 1) < 0.05, name
        assert abs(float(tensor.mean())) < 4 * want / tensor.numel() ** 0.5, name


def test_the_meta_device_is_refused(family):
    with torch.device("meta"):
        model = family().build()
    with pytest.raises(RuntimeError, match="meta device holds nothing"):
        initialize(model, 0)
