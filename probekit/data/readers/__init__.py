"""Readers of published data sets from their original files."""

from probekit.data.readers.cifar import cifar10, cifar100
from probekit.data.readers.idx import FASHION_MNIST_CLASSES, fashion_mnist, mnist, read_idx
from probekit.data.readers.tiny_imagenet import tiny_imagenet

__all__ = [
    "FASHION_MNIST_CLASSES",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "mnist",
    "read_idx",
    "tiny_imagenet",
]
