"""Attention over modalities: whatever their order, and as if those a record lacks did not exist."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fedfair.models import AttentionFusion

MODALITIES, WIDTH = 3, 4


def fusion(modalities: Sequence[int] = range(MODALITIES)) -> AttentionFusion:
    """Return one network for some modalities, in an order: only the rows of its positions differ."""
    torch.manual_seed(0)
    made = AttentionFusion(len(modalities), WIDTH, 5, 2).double()
    positions = torch.randn(MODALITIES, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        made.position.weight.copy_(positions[list(modalities)])
    return made


def inputs() -> tuple[list[Tensor], Tensor]:
    """Return embeddings of eight records, one for each subset of the modalities, and what is present."""
    present = torch.tensor(list(itertools.product([True, False], repeat=MODALITIES)))
    values = torch.randn(MODALITIES, len(present), WIDTH, generator=torch.Generator().manual_seed(2)).double()
    return [z * present[:, [m]] for m, z in enumerate(values)], present


@pytest.mark.parametrize("order", list(itertools.permutations(range(MODALITIES))))
def test_the_order_of_modalities_changes_nothing(order: tuple[int, ...]) -> None:
    embeddings, present = inputs()
    wanted = fusion()(embeddings, present).logits
    found = fusion(order)([embeddings[m] for m in order], present[:, list(order)]).logits
    # Sums in another order round differently.
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)
    if list(order) != sorted(order):
        kept = fusion()([embeddings[m] for m in order], present[:, list(order)]).logits
        assert (kept - wanted).abs().max() > 1e-3, "a modality is known by its position"


@pytest.mark.parametrize("subset", [s for n in (1, 2) for s in itertools.combinations(range(MODALITIES), n)])
def test_a_record_is_scored_as_if_what_it_lacks_did_not_exist(subset: tuple[int, ...]) -> None:
    embeddings, present = inputs()
    chosen = [
        i
        for i, row in enumerate(present.tolist())
        if [m for m in range(MODALITIES) if row[m]] == list(subset)
    ]
    assert len(chosen) == 1
    wanted = fusion(subset)(
        [embeddings[m][chosen] for m in subset], present[chosen][:, list(subset)]
    ).features
    found = fusion()([z[chosen] for z in embeddings], present[chosen]).features
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


def test_records_can_be_mapped_over() -> None:
    embeddings, present = inputs()
    model = fusion()
    parameters = dict(model.named_parameters())

    def one(row: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, parameters, (list(row[:, None]), mask[None])).logits[0]
        return logits

    found = vmap(one)(torch.stack(embeddings, 1), present)
    torch.testing.assert_close(found, model(embeddings, present).logits, rtol=1e-13, atol=1e-14)
