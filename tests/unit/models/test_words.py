"""Texts: the sum of word vectors is that of an embedding bag, padding is nothing, a rare word is learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedfair.errors import ConfigError
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
    """Return an encoder that ends before its layers, and a bag with the same vectors, padding's not zero."""
    torch.manual_seed(0)
    encoder, bag = (
        WordEncoder(VOCABULARY, [5], 5).double(),
        nn.EmbeddingBag(VOCABULARY, 5, mode="sum", padding_idx=0),
    )
    encoder.body = nn.Identity()
    nn.init.normal_(encoder.vectors.weight)
    bag.double().load_state_dict({"weight": encoder.vectors.weight})
    return encoder, bag


def standardised(total: Tensor) -> Tensor:
    centred = total - total.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


def test_the_sum_is_that_of_an_embedding_bag_standardised() -> None:
    encoder, bag = pair()
    torch.testing.assert_close(encoder(words()), standardised(bag(words())), rtol=1e-13, atol=1e-14)
    assert not encoder(words())[3].any(), "a text without words stays zero"


def test_its_gradient_is_that_of_an_embedding_bag() -> None:
    encoder, bag = pair()
    direction = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double()
    for found in (encoder(words()), standardised(bag(words()))):
        (found * direction).sum().backward()
    torch.testing.assert_close(encoder.vectors.weight.grad, bag.weight.grad, rtol=1e-12, atol=1e-13)
    assert not encoder.vectors.weight.grad[0].any()


def test_one_telling_word_among_a_hundred_is_learned_by_plain_sgd() -> None:
    """Word 1 stands in every text of class 1 and in none of class 0; all other words are noise.

    With the mean of vectors drawn from N(0, 1), as PyTorch starts them, 30 steps leave the loss at 0.69,
    which is knowing nothing.
    """
    generator = torch.Generator().manual_seed(0)
    texts, labels = torch.randint(2, 1000, (64, 100), generator=generator), torch.arange(64) % 2
    texts[labels == 1, 0] = 1
    torch.manual_seed(0)
    model = nn.Sequential(WordEncoder(1000, [16], 16), nn.Linear(16, 2))
    steps = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(30):
        loss = cross_entropy(model(texts), labels)
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert float(loss.detach()) < 0.4


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


def test_vectors_of_one_number_are_refused() -> None:
    """Standardised over one entry, every text would be zero."""
    with pytest.raises(ConfigError, match="`hidden` of words must begin with at least 2, got 1"):
        WordEncoder(VOCABULARY, [1], 3)
