"""Encoders of tables and images: plain layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(in_dim: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """Return a multi-layer perceptron [B, in_dim] -> [B, out_dim], ReLU after every layer."""
    widths = [in_dim, *hidden, out_dim]
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def small_cnn(channels: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """Return a strided convolutional encoder [B, channels, height, width] -> [B, out_dim]."""
    widths = [channels, *hidden]
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], out_dim), nn.ReLU()
    )
