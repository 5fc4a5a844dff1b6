"""Networks whose weights are made by rule from their names: state_dict, outputs and gradients."""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from dist_diffusion.diffusion.guidance import classifier_gradient
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.models.build import build
from dist_diffusion.models.options import SuperResolutionOptions
from golden_checks.folder import Archive, Folder
from golden_checks.options import network_options
from golden_checks.report import MissingError, Row, distance, measured

TOLERANCE = 1e-4
"""Of outputs, absolute; of gradients, in parts of the largest entry."""


def check_state_dict(name: str, network: dict[str, Any]) -> Row:
    """Its names and shapes are those of meta.json."""
    return measured(f"{name} state_dict", 0.0, state_dict_error, network)


def state_dict_error(network: dict[str, Any]) -> float:
    """0. ValueError names entries that differ."""
    if "keys" not in network:
        raise MissingError("meta.json lists no keys of it")
    with torch.device("meta"):
        model = build_network(network)
    ours = {(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    wanted = {(key, tuple(shape)) for key, shape in network["keys"].items()}
    wrong = sorted({key for key, _ in ours ^ wanted})
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(wanted)} names or shapes differ, {wrong[0]} among them")
    return 0.0


def check_values(folder: Folder, archive: Archive) -> Iterator[Row]:
    """What the network gives for the archive's inputs."""
    name, network = archive.stem, folder.networks[archive.stem]
    if network.get("kind") == "classifier":
        yield measured(f"{name} logits", TOLERANCE, logits_error, folder, network, archive)
        yield measured(f"{name} grad", TOLERANCE, gradient_error, folder, network, archive)
    else:
        yield measured(f"{name} out", TOLERANCE, output_error, folder, network, archive)


@torch.no_grad()
def output_error(folder: Folder, network: dict[str, Any], archive: Archive) -> float:
    """Of a UNet."""
    model = weighted(folder, network)
    inputs = [tensor(archive["x"]), tensor(archive["t"]), labels(archive)]
    if isinstance(options_of(network), SuperResolutionOptions):
        inputs.append(tensor(archive["low_res"]))
    return distance(model(*inputs).numpy(), archive["out"])


@torch.no_grad()
def logits_error(folder: Folder, network: dict[str, Any], archive: Archive) -> float:
    """Of a classifier."""
    model = weighted(folder, network)
    return distance(model(tensor(archive["x"]), tensor(archive["t"])).numpy(), archive["logits"])


def gradient_error(folder: Folder, network: dict[str, Any], archive: Archive) -> float:
    """Of a classifier's guidance at scale 1, image by image: each is at its own timestep."""
    guidance = classifier_gradient(weighted(folder, network), 1.0)
    x, y = tensor(archive["x"]).split(1), tensor(archive["y"]).long().split(1)
    levels = [Level(alpha=0.0, sigma=1.0, model_time=float(t)) for t in archive["t"]]
    ours = torch.cat([guidance(image, level, label) for image, level, label in zip(x, levels, y, strict=True)])
    reference = archive["grad"]
    return distance(ours.numpy(), reference, np.abs(reference).max())


def weighted(folder: Folder, network: dict[str, Any]) -> nn.Module:
    """The network with its rule-made weights, as one uses it: in eval mode, frozen."""
    model, salt = build_network(network), folder.meta("salt")
    model.load_state_dict({name: weight(name, value.shape, salt) for name, value in model.state_dict().items()})
    return model.eval().requires_grad_(False)


def weight(name: str, shape: torch.Size, salt: int) -> torch.Tensor:
    """The rule of the golden folder's README."""
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) + salt) % 2**31)
    r = torch.randn(shape, generator=generator)
    if name.endswith("weight") and len(shape) >= 2:
        return r / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * r if name.endswith(".weight") else 0.1 * r


def build_network(network: dict[str, Any]) -> nn.Module:
    """Ours, by the options of meta.json."""
    return build(options_of(network))


def options_of(network: dict[str, Any]) -> Any:
    """Our options, by those of meta.json."""
    embedding = network.get("keys", {}).get("label_emb.weight")
    return network_options(network.get("kind", ""), network.get("options", {}), embedding[0] if embedding else None)


def tensor(array: np.ndarray) -> torch.Tensor:
    """A copy."""
    return torch.tensor(array)


def labels(archive: Archive) -> torch.Tensor | None:
    """Labels, or None where there are none."""
    given = "y" in archive.names() and archive["y"].size
    return tensor(archive["y"]).long() if given else None
