"""Optional packages, and how to install a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from probekit.errors import MissingPackageError

# The extra of probekit that installs each package; other packages are installed by name.
EXTRAS = {
    "accelerate": "train",
    "captum": "captum",
    "dask": "cluster",
    "distributed": "cluster",
    "imagecorruptions": "frost",
    "matplotlib": "plot",
    "mlflow": "mlflow",
    "pyarrow": "parquet",
    "pyautoattack": "autoattack",
    "rsatoolbox": "rsatoolbox",
    "sklearn": "train",
    "tensorboard": "tensorboard",
    "transformers": "huggingface",
    "wandb": "wandb",
}


@contextmanager
def optional(package: str, purpose: str) -> Iterator[None]:
    """Raises `MissingPackageError` if an import in the block fails for lack of an optional package.

    `package` is its import name, such as `sklearn`; `purpose`, which needs it, is the subject of the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise missing(package, purpose) from None


def missing(package: str, purpose: str) -> MissingPackageError:
    """The error that names a missing package and how to install it."""
    install = f'"probekit[{EXTRAS[package]}]"' if package in EXTRAS else package
    return MissingPackageError(
        f"{purpose} needs the package {package}, which is not installed; install it with: "
        f"pip install {install}"
    )
