"""Models with flex_attention, which compiles itself, also in a process that has compiled nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch.nn.attention.flex_attention")

CODE = """
import sys
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
import probekit as pk

assert "torch._dynamo" not in sys.modules

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.act, self.head = nn.Linear(8, 24), nn.GELU(), nn.Linear(8, 2)

    def attend(self, x):
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x):
        out = flex_attention(*self.attend(x), score_mod=lambda score, b, h, i, j: score + 0.1 * (i - j))
        return self.head(self.act(out.transpose(1, 2).reshape(x.shape)).mean(1))

net, x = Net().eval(), torch.rand(6, 5, 8)
if by_recorder:
    with torch.no_grad(), pk.Recorder(net) as recorder:
        net(x)
    found = recorder.activations["act"]
else:
    found = pk.record(net, (x, torch.arange(6) % 2), batch_size=4, progress=False)["activation"].values
with torch.no_grad():
    q, k, v = net.attend(x)
    place = torch.arange(5)
    scores = q @ k.transpose(2, 3) / 2 + 0.1 * (place[:, None] - place)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(torch.as_tensor(found), net.act(out).mean(1), rtol=1e-4, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("by_recorder", [False, True])
def test_the_first_pass_of_a_process_records_the_values_of_plain_attention(
    by_recorder: bool,
) -> None:
    code = f"by_recorder = {by_recorder}\n{CODE}"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-500:]
