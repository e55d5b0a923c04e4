from __future__ import annotations

import pytest
import torch

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.spec import Patch
from llmfactory.model.head.spec import Lm


def made(**changes):
    part = Patch(**{"image_size": 6, "patch_size": 2, **changes}).build(0, 5, 0.3).double()
    for parameter in part.parameters():
        parameter.data.normal_()
    return part


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_of_each_square(bias, class_token):
    part = made(bias=bias, class_token=class_token)
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    got, first = part(images), int(class_token)
    assert got.shape == (4, 9 + first, 5)
    assert Patch(image_size=6, patch_size=2, class_token=class_token).n_vectors == 9 + first
    weight = part.squares.weight.flatten(1)
    for row, column in ((0, 0), (0, 2), (2, 1)):
        pixels = images[2, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
        want = weight @ pixels + (part.squares.bias if bias else 0.0)
        torch.testing.assert_close(got[2, first + 3 * row + column], want, rtol=1e-12, atol=1e-12)
    if class_token:
        assert torch.equal(got[:, 0], part.first.expand(4, 5))
    assert set(declarations(part)) == {name for name, _ in part.named_parameters()}


def test_channels():
    assert made(channels=1)(torch.zeros(2, 1, 6, 6, dtype=torch.float64)).shape == (2, 10, 5)


def test_pictures_of_another_size():
    with pytest.raises(UserError, match="a picture of 3 x 6 x 8 values, but the model reads 3 x 6 x 6"):
        made()(torch.zeros(1, 3, 6, 8, dtype=torch.float64))


def test_checks(gpt):
    with pytest.raises(ConfigError, match="no multiple of patch_size=16") as error:
        Patch(image_size=230, patch_size=16)
    assert error.value.problems[0].repair == "image_size=224"
    with pytest.raises(ConfigError, match="no vectors of a vocabulary"):
        gpt(embedding=Patch(image_size=6, patch_size=2), head=Lm(tied=True))


def test_small():
    assert Patch(image_size=224, patch_size=14).small(0.1) == {"image_size": 12, "patch_size": 4}
    assert Patch(image_size=4, patch_size=2).small(0.1) == {"image_size": 4, "patch_size": 2}
