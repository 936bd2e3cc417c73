"""The encoder of texts: the sum of learned vectors, one per word, brought to one scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from fedfair.errors import ConfigError
from fedfair.models.encoders._plain import mlp

# Small against what a step changes: a word that tells stands out early.
START = 0.01


class WordEncoder(nn.Module):
    """The sum of a text's word vectors, standardised, then a multi-layer perceptron.

    The sum is that of ``nn.EmbeddingBag(mode="sum", padding_idx=0)``, which cannot be mapped over
    records (bag of words: Joulin et al. 2017, arXiv 1607.01759). It is standardised over its entries
    (Ba et al. 2016, arXiv 1607.06450), so a text's length does not matter; without that, plain SGD moves a
    word among a hundred too little to learn from it. A text without words stays zero.

    Parameters
    ----------
    vocabulary : int
        The number of different numbers, 0 included, which stands after the last word.
    hidden : Sequence[int]
        Width of the vectors, at least 2, then hidden widths; none: vectors of `out_dim`.
    out_dim : int
        p.

    Raises
    ------
    ConfigError
        If the vectors have one entry only, which standardising would make zero.
    """

    def __init__(self, vocabulary: int, hidden: Sequence[int], out_dim: int) -> None:
        super().__init__()
        width, *rest = hidden or [out_dim]
        if width < 2:
            raise ConfigError(
                f"`hidden` of words must begin with at least 2, got {width}: one number has no scale"
            )
        self.vectors = nn.Embedding(vocabulary, width, padding_idx=0)
        with torch.no_grad():
            self.vectors.weight.mul_(START)
        self.body = mlp(width, rest, out_dim)

    def forward(self, words: Tensor) -> Tensor:
        """Return embeddings [B, p] of words, int64 [B, L]."""
        vectors = self.vectors(words)
        # Noise of a private run moves the vector of padding too, so its zeros are not relied upon.
        known = (words != 0)[..., None].to(vectors.dtype)
        total = (vectors * known).sum(1)
        embedding: Tensor = self.body(layer_norm(total, total.shape[-1:]))
        return embedding
