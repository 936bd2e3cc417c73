"""Encoders of tables and images: plain layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

GRID = 4
"""Places of an image along height and width that are kept apart."""
FAINT = 1e-6  # a variance: an image of one value must not become noise

Convolution = TypeVar("Convolution", nn.Conv2d, nn.Conv3d)


class Standardise(nn.Module):
    """Subtract each image's mean and divide by its standard deviation; an image of zeros stays one."""

    def forward(self, images: Tensor) -> Tensor:
        """Return [..., H, W], each [H, W] by itself."""
        centred = images - images.mean((-2, -1), keepdim=True)
        return centred / (centred.square().mean((-2, -1), keepdim=True) + FAINT).sqrt()


def he_started(layer: Convolution) -> Convolution:
    """Return the layer with weights after He et al. 2015, arXiv 1502.01852; PyTorch's let signals fade."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(in_dim: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """Return a multi-layer perceptron [B, in_dim] -> [B, out_dim], ReLU after every layer."""
    widths = [in_dim, *hidden, out_dim]
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def small_cnn(channels: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """Return a strided convolutional encoder [B, channels, height, width] -> [B, out_dim].

    Each channel of an image is standardised by itself, so that devices of another brightness look alike.
    The last maps are averaged within each place of a grid and not over the whole image: where something is
    seen tells as much as that it is seen.
    """
    widths = [channels, *hidden]
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [he_started(nn.Conv2d(before, after, 3, stride=2, padding=1)), nn.ReLU()]
    return nn.Sequential(
        Standardise(),
        *layers,
        nn.AdaptiveAvgPool2d(GRID),
        nn.Flatten(),
        nn.Linear(widths[-1] * GRID**2, out_dim),
        nn.ReLU(),
    )
