"""Encoders that create nested tensors from padded tokens raise an error that states the fix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from probekit.errors import LayerError


class Padded(nn.Module):
    """A transformer encoder over patches, of which the last three are padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=nn.ReLU())
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        mask[:, -3:] = True
        return self.head(self.encoder(tokens, src_key_padding_mask=mask)[:, 0])


IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 2


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layers", [None, ["encoder.layers.0"], ["encoder.layers.1.linear1"]])
def test_nested_tensors_are_refused_with_a_fix(layers: list[str] | None) -> None:
    with pytest.raises(LayerError, match=r"returns a nested tensor.*use_nested_tensor = False"):
        pk.analyze(Padded().eval(), (IMAGES, LABELS), layers, progress=False)


@pytest.mark.filterwarnings("ignore")
def test_the_fix_in_the_message_works() -> None:
    net = Padded().eval()
    net.encoder.use_nested_tensor = False
    found = pk.record(net, (IMAGES, LABELS), "encoder.layers.0", progress=False)
    kept: list[Tensor] = []
    hook = net.encoder.layers[0].register_forward_hook(lambda m, a, out: kept.append(out))
    with torch.no_grad():
        net(IMAGES)
    hook.remove()
    np.testing.assert_allclose(found["activation"], kept[0].mean(1), rtol=1e-5, atol=1e-6)
