"""Keyword-input text and audio models: means exclude padding, as in manual computation."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from probekit.capture.masks import masked_mean, token_mask
from probekit.errors import DataError, LayerError

transformers = pytest.importorskip("transformers")
# GELU and tanh have negative values, so selectivity warnings are expected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*class means below zero"),
    pytest.mark.filterwarnings("ignore:.*samples are too few"),
]

LAYER = "bert.encoder.layer.0.intermediate.intermediate_act_fn"


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        vocab_size=40, max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def tokens(count: int = 9, length: int = 7) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, length, (count,), generator=draw)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(1, 40, (count, length), generator=draw) * mask
    return {"input_ids": ids, "attention_mask": mask}


def by_hand(model: nn.Module, module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The mean over tokens of each sample, run separately and without padding."""
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _a, out: kept.append(out.detach()))
    means = []
    with torch.no_grad():
        for ids, mask in zip(*inputs.values(), strict=True):
            model(ids[None, : int(mask.sum())])
            means.append(kept.pop()[0].double().mean(0))
    handle.remove()
    return torch.stack(means)


LABELS = torch.tensor([0, 1, 2] * 3)


def forms() -> dict[str, Any]:
    inputs = tokens()
    rows = [
        {
            **{name: one[i].tolist() for name, one in inputs.items()},
            "label": int(LABELS[i]),
            "idx": i,
        }
        for i in range(9)
    ]
    return {
        "pairs of batches": [
            ({name: one[part] for name, one in inputs.items()}, LABELS[part])
            for part in (slice(0, 4), slice(4, 9))
        ],
        "mappings": [{**inputs, "labels": LABELS}],
        "rows": rows,
    }


@pytest.mark.parametrize("form", forms())
def test_token_means_exclude_padding(bert: nn.Module, form: str) -> None:
    recording = pk.record(bert, forms()[form], LAYER, batch_size=5, progress=False)
    expected = by_hand(bert, bert.get_submodule(LAYER), tokens())
    np.testing.assert_allclose(recording["activation"], expected, rtol=1e-5, atol=1e-6)
    assert recording["label"].values.tolist() == LABELS.tolist()
    kept = pk.record(bert, forms()[form], LAYER, progress=False, limit=4)
    assert kept.sizes["sample"] == 4


def test_a_text_classifier_is_analyzed(bert: nn.Module) -> None:
    result = pk.analyze(bert, forms()["mappings"], metrics=["selectivity", "dimensionality"])
    with torch.no_grad():
        right = bert(**tokens()).logits.argmax(1) == LABELS
    assert float(result["accuracy"]) == pytest.approx(float(right.float().mean()))
    means = by_hand(bert, bert.get_submodule(LAYER), tokens())
    by_class = torch.stack([means[label == LABELS].mean(0) for label in range(3)])
    found = result["units"]["class_mean"].values[result["units"]["layer"].values == LAYER]
    np.testing.assert_allclose(found, by_class.T, rtol=1e-5, atol=1e-6)


def test_a_recorder_called_by_the_user_respects_the_mask(bert: nn.Module) -> None:
    with pk.Recorder(bert, LAYER) as recorder, torch.no_grad():
        for _ in range(2):  # the pass that finds the layers, and a pass that only records
            bert(**tokens())
            twin = deepcopy(bert)
            expected = by_hand(twin, twin.get_submodule(LAYER), tokens())
            torch.testing.assert_close(
                recorder.activations[LAYER].double(), expected, rtol=1e-5, atol=1e-6
            )


def test_full_maps_with_padding_are_refused(bert: nn.Module) -> None:
    with pytest.raises(LayerError, match="padding among its positions"):
        pk.record(bert, forms()["mappings"], LAYER, spatial="none", progress=False)
    full = {"input_ids": tokens()["input_ids"], "attention_mask": torch.ones(9, 7).long()}
    whole = pk.record(bert, [(full, LABELS)], LAYER, spatial="none", progress=False)
    assert whole.sizes["unit"] == 24 * 7


def test_tokens_do_not_support_gradients_or_corruptions(bert: nn.Module) -> None:
    data = forms()["mappings"]
    with pytest.raises(DataError, match="robustness needs inputs that are one tensor"):
        pk.robustness(bert, data, ["fog"], (1,))
    with pytest.raises(
        DataError, match="one tensor of images, and the data contains KeywordInputs"
    ):
        pk.analyze(bert, data, metrics=["gradient_variability"])
    with pytest.raises(DataError, match="an ImageModel needs inputs"):
        pk.analyze(pk.ImageModel(bert), data)


@pytest.fixture(scope="module")
def wav2vec2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        conv_dim=(8, 8), conv_stride=(4, 3), conv_kernel=(8, 5), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        do_stable_layer_norm=True, num_labels=2, classifier_proj_size=8, mask_time_prob=0.0,
    )  # fmt: skip
    return transformers.Wav2Vec2ForSequenceClassification(config).eval()


def test_an_audio_model_excludes_padding_at_every_resolution(wav2vec2: nn.Module) -> None:
    lengths = torch.tensor([400, 333, 250, 120])
    mask = (torch.arange(400) < lengths[:, None]).long()
    waves = torch.randn(4, 400, generator=torch.Generator().manual_seed(2)) * mask
    data = [({"input_values": waves, "attention_mask": mask}, torch.tensor([0, 1, 0, 1]))]
    first = "wav2vec2.feature_extractor.conv_layers.0.activation"
    last = "wav2vec2.encoder.layers.0.feed_forward.intermediate_act_fn"
    recording = pk.record(wav2vec2, data, [first, last], progress=False)
    held: dict[str, Tensor] = {}
    for name in (first, last):
        wav2vec2.get_submodule(name).register_forward_hook(
            lambda _m, _a, out, name=name: held.__setitem__(name, out.detach().double())
        )
    with torch.no_grad():
        wav2vec2(waves, attention_mask=mask)
    frames = wav2vec2._get_feat_extract_output_lengths(lengths)  # lengths from transformers
    tail = [held[last][row, : int(n)].mean(0) for row, n in enumerate(frames)]
    head = [held[first][row, :, : (int(n) - 8) // 4 + 1].mean(1) for row, n in enumerate(lengths)]
    for name, rows in ((first, head), (last, tail)):
        found = recording["activation"].values[:, recording["layer"].values == name]
        np.testing.assert_allclose(found, torch.stack(rows), rtol=1e-4, atol=1e-5)
    assert pk.analyze(wav2vec2, data)["layers"].sizes["layer"] >= 4


class Halved(nn.Module):
    """Joins tokens in pairs, which the mask does not cover."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 6)
        self.act = nn.ReLU()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.act(self.embed(input_ids).unfold(1, 2, 2).mean(3))


def test_positions_that_the_mask_does_not_cover_are_refused() -> None:
    inputs = tokens(length=8)
    with pytest.raises(LayerError, match="not known which of them are padding"):
        pk.record(Halved(), [(inputs, LABELS)], "act", progress=False)


def test_a_sample_with_only_padding_is_refused() -> None:
    with pytest.raises(LayerError, match="sample 1 of a batch consists only of padding"):
        masked_mean(torch.ones(2, 3, 4), torch.tensor([[True] * 4, [False] * 4]))


def test_a_full_mask_changes_nothing() -> None:
    assert token_mask({"attention_mask": torch.ones(2, 3)}) is None
