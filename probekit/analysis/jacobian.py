"""The norm of the Jacobian of the logits with respect to the image, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from probekit.analysis.one_pass import Columns
from probekit.capture.gradients.backward import Forward
from probekit.capture.gradients.differentiated import Differentiated
from probekit.capture.gradients.norms import Method, check_options, choose_method, why_exact
from probekit.capture.outputs import tensor_of
from probekit.capture.stream import open_model_and_data
from probekit.errors import ModelError, OptionError, warn
from probekit.models.image_model import Model, ModelOrName, borrow
from probekit.models.inputs import copied, one_tensor
from probekit.models.logits import logits_of
from probekit.runtime.processes import processes
from probekit.runtime.progress import hidden
from probekit.runtime.settings import caller_device, in_own_settings


@in_own_settings
def jacobian_norm(
    model: ModelOrName,
    data: Any,
    *,
    method: Method = "auto",
    probes: int = 32,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    memory: int = 2**30,
    progress: bool = True,
) -> xr.Dataset:
    """Computes the Frobenius norm of d logits / d image for every sample.

    With probes v ~ N(0, I), ||Jv||^2 has the mean ||J||_F^2. The square root of the mean of K of them
    is too small by about var(||Jv||^2) / (8 K ||J||^3); this term is added as a correction.

    Args:
        model: A module, an `ImageModel` (the image is then in [0, 1]), or a name for `load_model`.
        data: Labeled images, as for `analyze`.
        method: `"exact"`: one backward pass per logit; `"probes"`: forward-mode derivatives along random
            directions; `"auto"`: probes if there are more logits than probes.
        probes: Number of directions per sample; they depend only on the seed and the sample's index.
        seed: Seed of the directions and of the sample that `limit` draws.
        memory: Maximum number of bytes for intermediate results.
        batch_size, limit, device, progress: As for `analyze`.

    Returns:
        `jacobian_norm` (sample), with `label` (sample); `probe_error` (sample), the standard error due
        to the probes (0 for exact norms); `mean` over samples and its standard error `sem`. The
        attributes include `method`.

    Raises:
        ModelError: The model does not return (batch, logits), an output depends on other samples of the
            batch, or, with probes, an operation has no forward-mode derivative.
        OptionError: An option out of range.

    Source:
        Our interpretation of Leavitt & Morcos 2020 (arXiv 2010.07693).

    Example:
        >>> found = jacobian_norm("probekit:resnet20-fashion-mnist", "fashion-mnist", limit=20)
        >>> round(found["mean"].item(), 1), round(found["sem"].item(), 1)
        (43.7, 3.9)
    """
    check_options(method, probes, memory)
    if method != "exact" and probes < 2:
        raise OptionError(f"the norm of a Jacobian needs at least 2 probes, not {probes}")
    model, batches = open_model_and_data(model, data, batch_size=batch_size, limit=limit, seed=seed)
    columns, together = Columns(), processes()
    with borrow(model, device) as home, torch.no_grad():
        first = one_tensor(batches.peek().images, "the Jacobian")[:4].to(home)
        with _logits(model) as forward:
            outputs = forward(first)["logits"].shape[1]
        used = choose_method(method, outputs, probes)
        bar = tqdm(total=batches.samples, disable=hidden(progress), leave=False)
        with Differentiated.open(model, first, _logits, memory) as differentiated, bar:
            if used == "probes" and (
                reasons := differentiated.forward_mode_fails(first[:2], ["logits"])
            ):
                warn(why_exact(reasons, method))
                used = "exact"
            for batch in batches.share(together.rank, together.world):
                images = batch.images.to(home)
                differentiated.check(images)
                if used == "exact":
                    units = {"logits": torch.arange(outputs)}
                    norm = differentiated.square_norms(images, units)["logits"].sum(1).sqrt()
                    error = torch.zeros_like(norm)
                else:
                    norm, error = _from_probes(differentiated, images, batch.index, probes, seed)
                columns.append(jacobian_norm=norm, probe_error=error)
                columns.append(label=batch.of(None).labels, sample=batch.index)
                bar.update(len(batch))
    columns = Columns.joined(together.gather(columns))
    names = ("jacobian_norm", "probe_error", "label")
    found = xr.Dataset(
        {name: ("sample", columns[name]) for name in names},
        coords={"sample": columns["sample"]},
        attrs={"method": used, "probes": probes if used == "probes" else 0, "seed": seed},
    )
    found = found.sortby("sample") if together.world > 1 else found
    norms = found["jacobian_norm"]
    return found.assign(mean=norms.mean(), sem=norms.std(ddof=1) / norms.sizes["sample"] ** 0.5)


@contextmanager
def _logits(model: Model) -> Iterator[Forward]:
    def forward(images: Tensor) -> dict[str, Tensor]:
        with caller_device():
            output = model(copied(images))
        logits = logits_of(output, len(images))
        output = tensor_of(output) if logits is None else logits
        if output is None or output.ndim != 2 or len(output) != len(images):
            shape = None if output is None else tuple(output.shape)
            raise ModelError(
                f"the Jacobian of the logits needs a model that gives (batch, logits), not {shape}"
            )
        return {"logits": output}

    yield forward


def _from_probes(
    differentiated: Differentiated, images: Tensor, index: Tensor, probes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Norms and their standard errors, (batch,)."""
    squares: dict[int, list[Tensor]] = {}  # (probes, samples), by the first sample
    for part, derivatives in differentiated.derivatives(images, index, probes, seed):
        found = derivatives["logits"].cpu().double().square().sum(2)
        squares.setdefault(part.start, []).append(found)
    table = torch.cat([torch.cat(chunks) for chunks in squares.values()], 1).T
    mean, spread = table.mean(1), table.var(1) / probes
    root = mean.sqrt()
    safe = torch.where(mean > 0, mean, torch.ones_like(mean))
    return root + spread / (8 * safe**1.5), spread.sqrt() / (2 * safe.sqrt())
