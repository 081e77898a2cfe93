"""What a network is trained on: all of it resident on the device, images as bytes until a step asks for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from varprop.simulator import cifar10
from varprop.simulator.errors import UserError
from varprop.simulator.network import Network, Shape

_TEST_SHARE = cifar10.available("test") / cifar10.available("train")


@dataclass(frozen=True)
class Labelled:
    """Inputs with their targets.

    `inputs` are bytes (images, taken as pixels in [0, 1]) or floats, of shape (n, *sample shape). `targets` are class
    numbers: of shape (n,), or (n, height, width) for a class at every pixel.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Labelled:
        """Return the same on a device."""
        return Labelled(self.inputs.to(device), self.targets.to(device))

    def fetch(self, index: Tensor, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the inputs that `index` picks, of the network's input shape, and their targets."""
        x = self.inputs[index]
        x = x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)
        if x.shape[1:] != shape:
            smaller = shape[1] < x.shape[2] or shape[2] < x.shape[3]  # the filter against aliasing is the slower one
            x = functional.interpolate(x, shape[1:], mode="bilinear", align_corners=False, antialias=smaller)
        return x, self.targets[index]


@dataclass(frozen=True)
class TrainingData:
    """The training set, perhaps one to validate on, and the order of an epoch.

    `source` says in words what it is. Without `shuffle` every epoch runs through the samples as they stand.
    """

    train: Labelled
    validation: Labelled | None
    source: str
    shuffle: bool = True

    def to(self, device: torch.device) -> TrainingData:
        """Return the same on a device."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the order of the samples in an epoch, a function of seed and epoch alone."""
        if not self.shuffle:
            return np.arange(len(self.train))
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(3, epoch))))
        return rng.permutation(len(self.train))

    def describe(self) -> dict[str, object]:
        """Return what tells these data from others in a record, their bytes' sum among it."""
        parts = [self.train] if self.validation is None else [self.train, self.validation]
        digest = hashlib.sha256()
        for tensor in (tensor for part in parts for tensor in (part.inputs, part.targets)):
            digest.update(tensor.cpu().numpy().tobytes())
        return {
            "source": self.source,
            "train": len(self.train),
            "validation": sum(map(len, parts[1:])),
            "shuffle": self.shuffle,
            "sha256": digest.hexdigest(),
        }


def cifar10_data(data_dir: Path | None, subset: int | None = None) -> TrainingData:
    """Read CIFAR-10.

    Parameters
    ----------
    data_dir
        As `varprop.simulator.cifar10.read` takes it.
    subset
        Number of training images, the same for every seed; a fifth as many test images go with them. Default: all.

    Raises
    ------
    UserError
        Missing or damaged files, or a subset out of range.
    """
    everything = cifar10.available("train")
    count = everything if subset is None else subset
    if not 1 <= count <= everything:
        raise UserError("--subset", count, f"a whole number from 1 to {everything:,}")
    train = _pick(data_dir, "train", count)
    test = _pick(data_dir, "test", max(1, round(count * _TEST_SHARE)))
    assert data_dir is not None  # or reading had refused it
    return TrainingData(train, test, f"CIFAR-10 ({cifar10.origin(data_dir)})")


def check_data(network: Network, data: TrainingData) -> None:
    """Raise UserError if the network cannot take these samples or has no output for one of their classes."""
    shape, given = network.nodes[0].shape, tuple(data.train.inputs.shape[1:])
    resizable = data.train.inputs.dtype == torch.uint8 and len(shape) == 3 and shape[0] == given[0]
    if given != shape and not resizable:
        raise UserError(f"{network.name}: input shape", shape, f"that of {data.source}, {given}", "give it a --size")
    output, target = network.nodes[-1].shape, tuple(data.train.targets.shape[1:])
    classes = int(data.train.targets.max()) + 1
    if output[1:] != target or output[0] < classes:
        expected = "(" + ", ".join([f"at least {classes}", *map(str, target)]) + ")"
        raise UserError(f"{network.name}: output shape", output, f"{expected}, as {data.source} has classes")


def _pick(data_dir: Path | None, split: cifar10.Split, count: int) -> Labelled:
    everything = np.arange(cifar10.available(split))
    # In their own order where all are taken: `order` shuffles.
    picked = everything if count == len(everything) else np.random.default_rng(0).permutation(everything)[:count]
    images, labels = cifar10.read(data_dir, split, picked)
    return Labelled(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
