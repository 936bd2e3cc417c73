"""Volumes: each slice by itself, attention over those that a record has, whatever their order and number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy, relu

from fedfair.models.encoders import SliceCnn, SlicePooling, VolumeEncoder

RECORDS, SLICES = 4, 6


def encoder() -> VolumeEncoder:
    torch.manual_seed(0)
    features = SliceCnn([5, 7])
    return VolumeEncoder(features, features.width, 3).double()


def volumes() -> Tensor:
    """Return records with 6, 3, 1 and no slice, in places that differ; one slice is black in part."""
    value = torch.randn(RECORDS, SLICES, 12, 9, generator=torch.Generator().manual_seed(1)).double()
    value[0, 1, :7, :4] = 0
    value[1, [0, 2, 5]] = 0
    value[1, 1, 1:] = 0
    value[2, torch.arange(SLICES) != 3] = 0
    value[3] = 0
    return value


def by_hand(model: VolumeEncoder, volume: Tensor) -> Tensor:
    """Return the embedding of a record [S, H, W]: a 2-D network on each slice, then softmax of scores."""
    slices = [image for image in volume if bool(image.any())]
    if not slices:
        return torch.zeros(3, dtype=torch.float64)
    hidden = []
    for image in slices:
        maps = ((image - image.mean()) / (image.var(correction=0) + 1e-6).sqrt())[None, None]
        for layer in model.features.layers:
            if isinstance(layer, nn.Conv3d):
                maps = relu(
                    nn.functional.conv2d(maps, layer.weight[:, :, 0], layer.bias, stride=2, padding=1)
                )
        linear = model.project[0]
        places = nn.functional.adaptive_avg_pool2d(maps, 4).flatten()
        hidden.append(relu(linear.weight @ places + linear.bias))
    first, _, last = model.pool.score
    scores = torch.stack([last.weight[0] @ torch.tanh(first.weight @ h + first.bias) for h in hidden])
    weights = scores.exp() / scores.exp().sum()
    return (weights[:, None] * torch.stack(hidden)).sum(0)


def test_it_is_a_network_on_each_slice_and_attention_over_those_there_are() -> None:
    model = encoder()
    wanted = torch.stack([by_hand(model, volume) for volume in volumes()])
    # Convolutions of another depth sum in another order: some units in the last place.
    torch.testing.assert_close(model(volumes()), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("extra", [1, 5])
def test_padding_slices_change_nothing_wherever_they_stand(extra: int) -> None:
    model, value = encoder(), volumes()
    zeros = value.new_zeros(RECORDS, extra, 12, 9)
    for padded in (torch.cat([value, zeros], 1), torch.cat([zeros, value], 1)):
        torch.testing.assert_close(model(padded), model(value), rtol=1e-12, atol=1e-13)


def test_the_order_of_slices_changes_nothing() -> None:
    model, value = encoder(), volumes()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(model(value[:, order]), model(value), rtol=1e-12, atol=1e-13)


def test_every_slice_counts() -> None:
    model, value = encoder(), volumes()
    whole = model(value)[0]
    for s in range(SLICES):
        without = value.clone()
        without[0, s] = 0
        assert (model(without)[0] - whole).abs().max() > 1e-6


@pytest.mark.parametrize("mapped", [False, True])
def test_a_record_without_slices_is_zero_and_sends_no_gradient(mapped: bool) -> None:
    model, empty = encoder(), volumes()[3:]
    assert torch.equal(model(empty), torch.zeros(1, 3, dtype=torch.float64))
    names = dict(model.named_parameters())

    def total(parameters: dict[str, Tensor], volume: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, parameters, (volume,)).sum()
        return found

    if mapped:
        found = vmap(lambda volume: grad(total)({k: p.detach() for k, p in names.items()}, volume))(
            empty[None]
        )
        gradients = list(found.values())
    else:
        gradients = list(torch.autograd.grad(total(names, empty), list(names.values())))
    # Equal to zero, which NaN is not.
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_attention_weights_sum_to_one_over_the_slices_there_are() -> None:
    torch.manual_seed(0)
    pool = SlicePooling(4)
    mask = torch.tensor([[True, False, True], [False, False, True], [False] * 3])
    slices = torch.randn(3, 3, 4)
    slices[..., 0] = 1.0
    torch.testing.assert_close(pool(slices, mask)[:, 0], torch.tensor([1.0, 1.0, 0.0]))


def test_attention_finds_the_slice_that_tells() -> None:
    """The class shows in one slice of eight, in a place that differs by record; a mean would dilute it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    value, labels = 0.3 * torch.rand(32, 8, 12, 12, generator=generator), torch.arange(32) % 2
    place = torch.randint(8, (32,), generator=generator)
    # Upper or lower half: how bright a slice is as a whole, no encoder sees.
    half = torch.arange(12) < 6
    value[torch.arange(32), place] += 2 * (half[None] == labels[:, None].bool())[..., None]
    model, last = VolumeEncoder(SliceCnn([4]), 4 * 16, 8), nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *last.parameters()], 0.02)
    for _ in range(150):
        loss = cross_entropy(last(model(value)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden = model.project(model.features(value))
    attention = torch.softmax(model.pool.score(hidden)[..., 0], 1)
    assert torch.equal(last(model(value)).argmax(1), labels)
    assert attention[torch.arange(32), place].mean() > 2 / 8, "twice what a mean gives it"
