"""Rows and batches of Hugging Face data sets, streams like those of WebDataset, and encoded images."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import probekit as pk
from probekit.data.batches import Batches
from probekit.errors import DataError, OptionError

LABELS = [2, 0, 1, 1, 2, 0]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
PILS = [Image.fromarray(pixels) for pixels in PIXELS]
TENSORS = torch.tensor(PIXELS / 255).movedim(3, 1).float()
NAMES = ["ant", "bee", "cow"]


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def model() -> pk.ImageModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return pk.ImageModel(net, (0.0,) * 3, (1.0,) * 3, (3, 8, 8))


class Again:
    """An iterable that can be read several times."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def samples(images: Any, image: str = "jpg", label: str = "cls", labels: Any = LABELS) -> Again:
    return Again(
        lambda: (
            {"__key__": f"{number:04d}", image: one, label: kind}
            for number, (one, kind) in enumerate(zip(images, labels, strict=True))
        )
    )


FORMS: dict[str, Any] = {
    "the output of a processor, and labels": ({"pixel_values": TENSORS}, LABELS),
    "tuples of tensors": Again(lambda: iter(zip(TENSORS, LABELS, strict=True))),
    "tuples of PIL images": Again(lambda: iter(zip(PILS, LABELS, strict=True))),
    "a list of PIL images": list(zip(PILS, LABELS, strict=True)),
    "jpg and cls": samples(PILS),
    "contents of files": samples([*map(encoded, PILS)], "png", labels=[b"2", b"0", b"1", b"1", b"2", b"0"]),
    "rows of tensors": [
        {"pixel_values": one, "labels": kind} for one, kind in zip(TENSORS, LABELS, strict=True)
    ],
    "rows of undecoded images": [
        {"image": {"bytes": encoded(one), "path": None}, "label": kind}
        for one, kind in zip(PILS, LABELS, strict=True)
    ],
    "batches of tensors": [{"pixel_values": TENSORS, "labels": torch.tensor(LABELS)}],
    "batches of lists": [
        {"image": PILS[:4], "label": LABELS[:4]},
        {"image": PILS[4:], "label": LABELS[4:]},
    ],
    "a batch of lists": {"image": PILS, "label": LABELS},
}  # fmt: skip


def check(data: Any) -> Any:
    """Analyzing and recording gives what the tensors themselves give, in order."""
    reference = pk.record(model(), (TENSORS, torch.tensor(LABELS)), "1", progress=False)
    found = pk.record(model(), data, "1", progress=False)
    assert found["label"].values.tolist() == LABELS
    np.testing.assert_allclose(
        found["activation"].values, reference["activation"].values, rtol=1e-5
    )
    return pk.analyze(model(), data, metrics=["selectivity"], progress=False)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_read_like_tensors(form: str) -> None:
    result = check(FORMS[form])
    assert result["samples"]["label"].values.tolist() == LABELS


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_recording_recognizes_its_data(form: str, tmp_path: Path) -> None:
    store, data = tmp_path / "r.zarr", FORMS[form]
    data = list(data) if isinstance(data, Again) else data  # a stream has no known length
    for _ in range(2):
        pk.record(model(), data, "1", store=store, progress=False)
    other = [(1 - TENSORS, torch.tensor(LABELS))]
    with pytest.raises(pk.ProbekitError, match="other"):
        pk.record(model(), other, "1", store=store, progress=False)


def test_streams_are_read_lazily() -> None:
    read = 0

    def many() -> Iterator[Any]:
        nonlocal read
        for number in range(10_000):
            read += 1
            yield PILS[number % 6], LABELS[number % 6]

    pk.analyze(
        model(), Again(many), metrics=["selectivity"], batch_size=4, limit=12, progress=False
    )
    assert read < 100


def test_images_that_a_plain_module_cannot_fit_are_refused() -> None:
    with pytest.raises(DataError, match="wrap the model in an ImageModel"):
        pk.analyze(model().module, FORMS["a list of PIL images"], progress=False)


def test_damaged_contents_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        pk.analyze(model(), [(encoded(PILS[0])[:40], 0)], progress=False)


class Splits(dict[str, Any]):
    """As a `DatasetDict`."""


def test_one_of_several_data_sets_is_chosen() -> None:
    both = Splits(train=FORMS["rows of tensors"][:2], test=list(FORMS["a list of PIL images"]))
    splits = Splits(
        {name: torch.utils.data.Subset(one, range(len(one))) for name, one in both.items()}
    )  # type: ignore[arg-type]
    assert len(pk.load_data(splits, model(), split="test")) == 6
    with pytest.raises(DataError, match="holds the splits train, test, not None"):
        pk.load_data(splits, model())
    with pytest.raises(OptionError, match="split='test' does not apply to Subset"):
        pk.load_data(splits["train"], model(), split="test")


def test_data_sets_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    data = datasets.Dataset.from_dict({"image": PILS, "label": LABELS}, features=features)
    result = check(data)
    assert result["units"]["class_name"].values.tolist() == NAMES
    check(pk.load_data(data, model()))
    check(data.cast_column("image", datasets.Image(decode=False)))
    check(data.to_iterable_dataset())
    tensors = data.with_transform(
        lambda rows: {
            "pixel_values": [torch.tensor(np.asarray(one) / 255).movedim(2, 0) for one in rows["image"]],
            "labels": rows["label"],
        }
    )  # fmt: skip
    check(tensors)
    check(pk.load_data(datasets.DatasetDict(test=data, train=data), model(), split="test"))


def test_a_pipeline_of_webdataset(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number, (image, label) in enumerate(zip(PILS, LABELS, strict=True)):
            writer.write(
                {"__key__": f"{number:04d}", "png": encoded(image), "cls": str(label).encode()}
            )
    url = (tmp_path / "0.tar").as_uri()

    def opened() -> Any:
        return wds.WebDataset(url, shardshuffle=False)

    check(opened())
    check(opened().decode("pil"))
    check(opened().decode("pil").to_tuple("png", "cls"))
    check(opened().decode("torchrgb").to_tuple("png", "cls").batched(4))


@pytest.mark.parametrize("form", ["tensor", "array", "mapping"])
def test_items_that_share_memory_are_refused(form: str) -> None:
    class Reused(Dataset[Any]):
        def __init__(self, copies: bool) -> None:
            self.buffer: Any = np.zeros((1, 2, 2), np.float32)
            self.buffer = self.buffer if form == "array" else torch.from_numpy(self.buffer)
            self.copies = copies

        def __len__(self) -> int:
            return 6

        def __getitem__(self, number: int) -> Any:
            self.buffer[...] = number / 10
            image = copy.deepcopy(self.buffer) if self.copies else self.buffer
            return (
                {"image": image, "label": number % 2} if form == "mapping" else (image, number % 2)
            )

    with pytest.raises(DataError, match="items of Reused share memory"):
        list(Batches(Reused(copies=False), batch_size=3))
    read = torch.cat([batch.images for batch in Batches(Reused(copies=True), batch_size=3)])
    assert torch.equal(read[:, 0, 0, 0], torch.arange(6) / 10)
