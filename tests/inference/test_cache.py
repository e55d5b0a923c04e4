from __future__ import annotations

import pytest
import torch

from llmfactory.inference.cache import KvCache


def test_returns_all_tokens_so_far_of_each_layer():
    cache = KvCache(6)
    written = {0: [], 1: []}
    for length in (3, 1, 2):
        for layer, heads in ((0, 2), (1, 1)):  # layers may differ in heads
            k, v = torch.randn(2, heads, length, 4), torch.randn(2, heads, length, 4)
            written[layer].append((k, v))
            keys, values = cache.append(layer, k, v)
            assert torch.equal(keys, torch.cat([k for k, _ in written[layer]], 2))
            assert torch.equal(values, torch.cat([v for _, v in written[layer]], 2))


def test_is_static():
    """Every step writes into the same memory."""
    cache = KvCache(5)
    first, _ = cache.append(0, torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4))
    for _ in range(4):
        keys, _ = cache.append(0, torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4))
        assert keys.data_ptr() == first.data_ptr()
    assert keys.shape[2] == 5


def test_a_full_cache_says_so():
    cache = KvCache(2)
    cache.append(0, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    with pytest.raises(IndexError, match="3 tokens in a cache made for 2"):
        cache.append(0, torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


def test_keeps_the_rows_asked_for_in_every_layer():
    cache = KvCache(4)
    k, v = torch.randn(3, 2, 2, 4), torch.randn(3, 2, 2, 4)
    for layer in (0, 1):
        cache.append(layer, k, v)
    cache.keep([2, 0])
    for layer in (0, 1):
        new = torch.randn(2, 2, 1, 4)
        keys, values = cache.append(layer, new, new)
        assert torch.equal(keys, torch.cat((k[[2, 0]], new), 2))
        assert torch.equal(values, torch.cat((v[[2, 0]], new), 2))


def test_keeps_the_dtype():
    keys, _ = KvCache(2).append(0, torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16))
    assert keys.dtype == torch.bfloat16
