"""The encoder of volumes: each slice by itself, then attention over the slices that a record has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedfair.models._masks import masked_softmax
from fedfair.models.encoders._plain import GRID, Standardise, he_started, mlp


class SliceCnn(nn.Module):
    """A strided convolutional network that sees each slice alone, [B, S, H, W] -> [B, S, width].

    Its kernels have depth one, which is a two-dimensional network on every slice. So the first axis
    stays that of records, as Opacus's hooks need it, and per-record gradients take half the time that
    they take with slices folded into that axis.

    Parameters
    ----------
    hidden : Sequence[int]
        Channels of each layer; each halves height and width.
    """

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [1, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            own = nn.Conv3d(before, after, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
            layers += [he_started(own), nn.ReLU()]
        self.layers = nn.Sequential(Standardise(), *layers, nn.AdaptiveAvgPool3d((None, GRID, GRID)))
        self.width = widths[-1] * GRID**2

    def forward(self, volume: Tensor) -> Tensor:
        """Return the means of each slice's last maps within each place of a grid."""
        maps: Tensor = self.layers(volume[:, None])
        return maps.transpose(1, 2).flatten(2)


class SlicePooling(nn.Module):
    """Attention over slices, sum_s a_s h_s with a = softmax_s w' tanh(V h_s + b), whatever their order.

    Ilse et al. 2018, arXiv 1802.04712, equations 7 and 8.

    Parameters
    ----------
    width : int
        p.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # A bias of the score would cancel in the softmax.
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def forward(self, slices: Tensor, mask: Tensor) -> Tensor:
        """Return [B, p] from slices [B, S, p], those where `mask` [B, S] holds; zeros if it does nowhere."""
        attention = masked_softmax(self.score(slices)[..., 0], mask)
        return (attention[..., None] * slices).sum(1)


class VolumeEncoder(nn.Module):
    """Encode each slice of a volume, and pool the embeddings of those that are not all zeros.

    Parameters
    ----------
    features : nn.Module
        Maps [B, S, H, W] to [B, S, width], each slice by itself.
    width, out_dim : int
        Of the features, and p.
    """

    def __init__(self, features: nn.Module, width: int, out_dim: int) -> None:
        super().__init__()
        self.features = features
        self.project = mlp(width, (), out_dim)
        self.pool = SlicePooling(out_dim)

    def forward(self, volume: Tensor) -> Tensor:
        """Return embeddings [B, p] of volumes [B, S, H, W], for any S."""
        embedding: Tensor = self.pool(self.project(self.features(volume)), seen(volume))
        return embedding


def seen(volume: Tensor) -> Tensor:
    """Return bool [B, S]: which slices of volumes [B, S, H, W] a record has, all but those of zeros."""
    return (volume != 0).any(-1).any(-1)
