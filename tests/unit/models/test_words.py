"""Texts: the mean of word vectors is that of an embedding bag, padding is nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedfair.models.encoders import WordEncoder

VOCABULARY, LENGTH = 20, 6


def words() -> Tensor:
    """Return texts of 6, 3, 1 and no words, one word twice."""
    value = torch.randint(1, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    value[0, 1] = value[0, 0]
    value[1, 3:] = 0
    value[2, 1:] = 0
    value[3] = 0
    return value


def pair() -> tuple[WordEncoder, nn.EmbeddingBag]:
    """Return an encoder that ends at the mean, and a bag with the same vectors, that of padding not zero."""
    torch.manual_seed(0)
    encoder, bag = (
        WordEncoder(VOCABULARY, [5], 5).double(),
        nn.EmbeddingBag(VOCABULARY, 5, mode="mean", padding_idx=0),
    )
    encoder.body = nn.Identity()
    nn.init.normal_(encoder.vectors.weight)
    bag.double().load_state_dict({"weight": encoder.vectors.weight})
    return encoder, bag


def test_the_mean_is_that_of_an_embedding_bag() -> None:
    encoder, bag = pair()
    torch.testing.assert_close(encoder(words()), bag(words()), rtol=1e-14, atol=1e-15)


def test_its_gradient_is_that_of_an_embedding_bag() -> None:
    encoder, bag = pair()
    direction = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double()
    for module in (encoder, bag):
        (module(words()) * direction).sum().backward()
    torch.testing.assert_close(encoder.vectors.weight.grad, bag.weight.grad, rtol=1e-14, atol=1e-15)
    assert not encoder.vectors.weight.grad[0].any()


def test_a_longer_text_of_padding_and_another_order_are_the_same_text() -> None:
    torch.manual_seed(0)
    encoder = WordEncoder(VOCABULARY, [5, 4], 3).double()
    padded = torch.cat([words(), torch.zeros(4, 7, dtype=torch.int64)], 1)
    shuffled = padded[:, torch.randperm(13, generator=torch.Generator().manual_seed(3))]
    for other in (padded, shuffled):
        torch.testing.assert_close(encoder(other), encoder(words()), rtol=1e-14, atol=1e-15)


def test_widths_are_the_vectors_and_then_the_layers() -> None:
    encoder = WordEncoder(VOCABULARY, [5, 4], 3)
    shapes = [tuple(p.shape) for p in encoder.parameters()]
    assert shapes == [(20, 5), (4, 5), (4,), (3, 4), (3,)]
    assert [tuple(p.shape) for p in WordEncoder(VOCABULARY, [], 3).parameters()] == [(20, 3), (3, 3), (3,)]
