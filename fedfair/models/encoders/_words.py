"""The encoder of texts: the mean of learned vectors, one per word."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedfair.models.encoders._plain import mlp


class WordEncoder(nn.Module):
    """The mean of a text's word vectors, then a multi-layer perceptron.

    The mean is that of ``nn.EmbeddingBag(mode="mean", padding_idx=0)``, which cannot be mapped over
    records. A text without words has the mean zero. Joulin et al. 2017, arXiv 1607.01759.

    Parameters
    ----------
    vocabulary : int
        The number of different numbers, 0 included, which stands after the last word.
    hidden : Sequence[int]
        Width of the vectors, then hidden widths; none: vectors of `out_dim`.
    out_dim : int
        p.
    """

    def __init__(self, vocabulary: int, hidden: Sequence[int], out_dim: int) -> None:
        super().__init__()
        width, *rest = hidden or [out_dim]
        self.vectors = nn.Embedding(vocabulary, width, padding_idx=0)
        self.body = mlp(width, rest, out_dim)

    def forward(self, words: Tensor) -> Tensor:
        """Return embeddings [B, p] of words, int64 [B, L]."""
        vectors = self.vectors(words)
        # Noise of a private run moves the vector of padding too, so its zeros are not relied upon.
        known = (words != 0)[..., None].to(vectors.dtype)
        embedding: Tensor = self.body((vectors * known).sum(1) / known.sum(1).clamp_min(1))
        return embedding
