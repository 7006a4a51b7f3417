"""The distribution of damage equals that of imagecorruptions at 224 pixels, which uses the same constants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from probekit.perturbations.corruptions.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt

imagecorruptions = pytest.importorskip("imagecorruptions", exc_type=ImportError)

# For elastic deformation that package uses other constants and no affine part. It enlarges the frost
# photographs by a tenth and includes a sixth one.
COMPARABLE = [
    name for name in CORRUPTIONS + EXTRA_CORRUPTIONS if name not in ("elastic_transform", "frost")
]
# Types that draw few random numbers per image need several images for a comparison.
DRAWS = {"fog": 16, "motion_blur": 10, "snow": 6, "spatter": 6}


@pytest.fixture(scope="module")
def picture():
    return np.asarray(Image.fromarray(data.astronaut()).resize((224, 224)))


def moments(damaged, picture):
    """Mean and standard deviation of the damage of each image, in 8-bit steps, (images, 2)."""
    damage = damaged.astype(float) - picture
    return np.stack([damage.mean((1, 2, 3)), damage.std((1, 2, 3))], 1)


@pytest.mark.slow
@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", COMPARABLE)
def test_damage_has_the_same_mean_and_deviation(name, severity, picture):
    draws = DRAWS.get(name, 1)
    np.random.seed(0)  # noqa: NPY002 - the package has no other way to be seeded
    theirs = [imagecorruptions.corrupt(picture, severity, name) for _ in range(draws)]
    images = torch.from_numpy(np.stack([picture] * draws)).permute(0, 3, 1, 2) / 255
    mine = corrupt(images, name, severity).mul(255).round().permute(0, 2, 3, 1).numpy()
    mine, theirs = moments(mine, picture), moments(np.stack(theirs), picture)
    # Half a step, since the package truncates to 8 bits where the original generators round.
    tolerance = 0.6 + 0.02 * theirs.mean(0)[1]
    if draws > 1:
        tolerance = tolerance + 4 * ((mine.var(0) + theirs.var(0)) / (draws - 1)) ** 0.5
    assert (abs(mine.mean(0) - theirs.mean(0)) < tolerance).all()
