"""The public interface of corruptions: reproducible images, and clear error messages."""

from __future__ import annotations

import importlib.util
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.perturbations.corruptions import corruption as corruptions
from probekit.perturbations.corruptions import weather
from probekit.perturbations.corruptions.corruption import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    TABLE_SIZES,
    Corruption,
    constants_of,
    corrupt,
    nearest_table,
)

ALL = CORRUPTIONS + EXTRA_CORRUPTIONS
HAS_FROST = importlib.util.find_spec("imagecorruptions") is not None
INSTALLED = [name for name in ALL if name != "frost" or HAS_FROST]


def photographs(n, side, channels=3):
    """Crops of a photograph as 8-bit values in [0, 1]."""
    whole = Image.fromarray(data.astronaut())
    boxes = [(i * 7, i * 5, i * 7 + 300, i * 5 + 300) for i in range(n)]
    crops = [np.asarray(whole.crop(box).resize((side, side))) for box in boxes]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    return images[:, :channels].contiguous()


def test_names_of_corruptions():
    assert len(set(ALL)) == 19
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("size", TABLE_SIZES)
@pytest.mark.parametrize("name", INSTALLED)
def test_every_severity_gives_valid_corrupted_images(name, size):
    images = photographs(2, size)
    before = images.clone()
    damage = []
    for severity in range(1, 6):
        damaged = corrupt(images, name, severity)
        assert damaged.shape == images.shape
        assert damaged.dtype == images.dtype
        assert damaged.isfinite().all()
        assert damaged.min() >= 0
        assert damaged.max() <= 1
        assert torch.allclose(damaged * 255, (damaged * 255).round(), atol=1e-3)
        damage.append((damaged - images).abs().mean().item())
    assert torch.equal(images, before)
    assert min(damage) > 0
    # Elastic deformation and spatter do not grow monotonically with severity, saturation above 1 differs
    # in kind from saturation below 1, and the effect of frost depends on which photographs are drawn.
    if name not in ("elastic_transform", "spatter", "saturate", "frost"):
        assert damage[4] > damage[0]
        assert all(b > 0.8 * a for a, b in itertools.pairwise(damage)), damage


@pytest.mark.parametrize("name", INSTALLED)
def test_an_image_is_the_same_in_any_batch_and_order(name):
    images = photographs(5, 32)
    index = [7, 100_000, 3, 0, 2**40]
    together = corrupt(images, name, 3, seed=1, index=index)
    backwards = corrupt(images.flip(0), name, 3, seed=1, index=torch.tensor(index).flip(0))
    alone = [corrupt(images[i : i + 1], name, 3, seed=1, index=[index[i]]) for i in range(5)]
    assert _steps(together, backwards.flip(0)) <= 1
    assert _steps(together, torch.cat(alone)) <= 1
    assert torch.equal(together, corrupt(images, name, 3, seed=1, index=np.array(index)))


def _steps(one, other):
    """The largest difference in 8-bit steps; at most one value in a thousand may differ."""
    off = ((one - other).abs() * 255).round()
    assert (off > 0).float().mean() < 1e-3
    return off.max()


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "fog", "elastic_transform"])
def test_splitting_a_batch_does_not_change_the_images(name, monkeypatch):
    images = photographs(7, 32)
    whole = corrupt(images, name, 4)
    monkeypatch.setattr(corruptions, "_VALUES_AT_ONCE_ON_CPUS", 2 * images[0].numel())
    assert _steps(whole, corrupt(images, name, 4)) <= 1


RANDOM = [
    name
    for name in INSTALLED
    if name
    in {
        *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow"),
        *("frost", "fog", "elastic_transform", "speckle_noise", "spatter"),
    }
]


@pytest.mark.parametrize("name", RANDOM)
def test_seed_and_index_change_the_images(name):
    image = photographs(1, 32)
    first = corrupt(image, name, 5)
    assert not torch.equal(first, corrupt(image, name, 5, seed=1))
    assert not torch.equal(first, corrupt(image, name, 5, index=[1]))


@pytest.mark.parametrize("name", INSTALLED)
def test_gray_images_are_corrupted(name):
    images = photographs(2, 32, channels=1)
    damaged = corrupt(images, name, 5)
    assert damaged.shape == (2, 1, 32, 32)
    assert (name == "saturate") == torch.equal(damaged, images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", INSTALLED)
def test_dtypes_are_preserved(name, dtype):
    images = photographs(2, 32)
    damaged = corrupt(images.to(dtype), name, 2)
    assert damaged.dtype == dtype
    # bfloat16 cannot represent all 8-bit levels; values are rounded to the nearest one.
    taken = (images.to(dtype).double() * 255).round().div(255).float()
    expected = corrupt(taken, name, 2)
    assert ((damaged.float() - expected).abs() > 1.5 / 255).float().mean() < 0.02


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("shape", [(28, 28), (40, 56), (97, 33)])
def test_other_image_sizes_are_corrupted(name, shape):
    height, width = shape
    images = torch.nn.functional.interpolate(photographs(1, 64), size=shape, mode="bilinear")
    assert corrupt(images, name, 5, table=nearest_table(*shape)).shape == (1, 3, height, width)


@pytest.mark.parametrize("name", INSTALLED)
def test_strided_images_and_gradients_do_not_matter(name):
    images = photographs(2, 32)
    expected = corrupt(images, name, 3)
    strided = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    damaged = corrupt(strided, name, 3)
    assert not damaged.requires_grad
    assert torch.equal(damaged, expected)


def test_values_are_continuous_without_quantization():
    images = photographs(1, 32)
    exact = corrupt(images, "gaussian_blur", 5, quantize=False)
    stored = corrupt(images, "gaussian_blur", 5)
    assert (exact * 255).frac().std() > 0.1
    assert torch.allclose(stored * 255, (exact * 255 + 2e-4).floor(), atol=1e-2)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["shot_noise", "impulse_noise", "fog", "brightness", "saturate", "snow"]),
    severity=st.integers(1, 5),
    value=st.floats(0, 1, width=32),
    table=st.sampled_from(TABLE_SIZES),
)
def test_flat_images_stay_in_range(name, severity, value, table):
    damaged = corrupt(torch.full((1, 3, 16, 16), value), name, severity, table=table)
    assert damaged.isfinite().all()
    assert damaged.min() >= 0
    assert damaged.max() <= 1


def test_an_empty_batch_stays_empty():
    assert corrupt(torch.zeros(0, 3, 32, 32), "fog").shape == (0, 3, 32, 32)


def test_tables_differ_and_can_be_selected():
    images = photographs(1, 32)
    assert torch.equal(corrupt(images, "fog", 3), corrupt(images, "fog", 3, table=32))
    assert not torch.equal(corrupt(images, "fog", 3), corrupt(images, "fog", 3, table=224))
    assert constants_of("contrast", 1, 32) == 0.75
    assert constants_of("contrast", 1, 224) == 0.4


def test_the_nearest_table_is_reported_once_per_size(monkeypatch):
    monkeypatch.setattr(corruptions, "_sizes_reported", set())
    images = torch.rand(1, 3, 48, 50)
    with pytest.warns(ProbekitWarning, match=r"48 by 50.*those for 64"):
        corrupt(images, "contrast")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrupt(images, "contrast")
        corrupt(torch.rand(1, 3, 20, 20), "contrast", table=32)
        corrupt(torch.rand(1, 3, 64, 64), "contrast")


def test_corruptions_compare_by_value():
    fog = Corruption("fog", 3, seed=5)
    assert fog == Corruption("fog", 3, 5)
    assert len({fog, Corruption("fog", 3, 5), Corruption("fog", 4, 5)}) == 2
    assert pickle.loads(pickle.dumps(fog)) == fog
    assert repr(fog) == "Corruption('fog', severity=3, seed=5)"
    assert eval(repr(Corruption("fog", 3, table=64, quantize=False))) == Corruption(
        "fog", 3, table=64, quantize=False
    )
    images = photographs(2, 32)
    assert torch.equal(fog(images, index=[4, 5]), corrupt(images, "fog", 3, seed=5, index=[4, 5]))
    assert fog.table_for(images) == 32
    assert fog.table_for(torch.rand(1, 1, 28, 28)) == 32
    assert Corruption("fog", 3, table=224).table_for(images) == 224


def test_missing_frost_names_the_source_of_its_photographs(monkeypatch):
    weather.frost_photographs.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r'pip install "probekit\[frost\]"'):
        corrupt(photographs(1, 32), "frost")
    weather.frost_photographs.cache_clear()


GOOD = torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "options", "error", "told"),
    [
        ((GOOD * 255).to(torch.uint8), {}, DataError, r"torch\.uint8.*\.float\(\) / 255"),
        (GOOD * 255, {}, DataError, "run from 0.* divide by 255"),
        (GOOD * 3 - 1, {}, DataError, "run from -.* before normalization"),
        (GOOD * 1.5, {}, DataError, r"to 1\.\d+; pass images before normalization"),
        (GOOD * float("nan"), {}, DataError, "NaN"),
        (GOOD / 0, {}, DataError, "inf"),
        (GOOD[0], {}, DataError, r"\(n, channels, .* not shape \(3, 32, 32\)"),
        (GOOD[:, :2], {}, DataError, "1 or 3 channels"),
        (GOOD.numpy(), {}, DataError, "needs a tensor .* not ndarray"),
        (GOOD, {"index": [1]}, DataError, "1 entries for 2 images"),
        (GOOD, {"index": torch.zeros(2, 2)}, DataError, "index holds"),
        (GOOD, {"index": [0.5, 1.5]}, DataError, r"index holds 0\.5"),
        (GOOD, {"index": [0, -1]}, DataError, "index holds -1; give non-negative integers"),
        (GOOD, {"severity": 6}, OptionError, "severity must be an integer from 1 to 5, not 6"),
        (GOOD, {"severity": 0}, OptionError, "severity must .* not 0"),
        (GOOD, {"severity": 2.5}, OptionError, r"severity must .* not 2\.5"),
        (GOOD, {"severity": True}, OptionError, "severity must .* not True"),
        (GOOD, {"seed": "a"}, OptionError, "seed must be an integer, not 'a'"),
        (GOOD, {"table": 100}, OptionError, "table must be 32, 64 or 224, not 100"),
        (GOOD, {"corruption": "fgo"}, OptionError, "'fgo'; close matches: fog"),
        (GOOD, {"corruption": "noise"}, OptionError, "gaussian_noise"),
    ],
)
def test_mistakes_are_reported(images, options, error, told):
    with pytest.raises(error, match=told):
        corrupt(images, **{"corruption": "contrast", **options})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_out_of_range_is_detected_to_the_last_bit(dtype):
    images = GOOD.to(dtype).clone()
    one, zero = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)
    for fine in (one, zero, -zero, torch.nextafter(zero, one)):
        images[1, 2, 3, 4] = fine
        corrupt(images, "contrast")
    nan = torch.tensor(torch.nan, dtype=dtype)
    for bad, told in [
        (torch.nextafter(one, 2 * one), "to 1"),
        (torch.nextafter(zero, -one), "run from -"),
        (one / 0, "to inf"),
        (-one / 0, "run from -inf"),
        (nan, "NaN"),
        (-nan, "NaN"),
    ]:
        images[1, 2, 3, 4] = bad
        with pytest.raises(DataError, match=told):
            corrupt(images, "contrast")


def test_a_corruption_is_validated_at_construction():
    with pytest.raises(OptionError, match="severity must"):
        Corruption("fog", 6)
    with pytest.raises(OptionError, match="close matches"):
        Corruption("fgo", 1)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_images(name):
    images = photographs(3, 64)
    assert _steps(corrupt(images.cuda(), name, 3).cpu(), corrupt(images, name, 3)) <= 1
