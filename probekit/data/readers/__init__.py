"""Readers of published data sets from their original files."""

from probekit.data.readers.cifar import cifar10 as cifar10
from probekit.data.readers.cifar import cifar100 as cifar100
from probekit.data.readers.idx import FASHION_MNIST_CLASSES as FASHION_MNIST_CLASSES
from probekit.data.readers.idx import fashion_mnist as fashion_mnist
from probekit.data.readers.idx import mnist as mnist
from probekit.data.readers.idx import read_idx as read_idx
from probekit.data.readers.tiny_imagenet import tiny_imagenet as tiny_imagenet
