"""FairLoRA in use: what it needs of a batch, at prediction and in a run; what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedfair.blocks import ParameterBlocks
from fedfair.data.crossing import group_names
from fedfair.data.schema import Schema, SiteRecords
from fedfair.errors import ConfigError, PrivacyError, ShapeError
from fedfair.gradients import path_gradients, weighted_gradients
from fedfair.models import MultimodalModel, adapters, build_model
from fedfair.models.encoders import _fair_lora
from fedfair.paths import RowPlan, Scales
from fedfair.privacy.isolation import check_isolation, made_up_batch
from fedfair.privacy.per_record import record_gradients
from fedfair.trained import TrainedModel
from tests.unit.models.cases import (
    GROUPS,
    NOTE,
    PHOTO,
    PRETRAINED,
    SCAN,
    TABLE,
    Case,
    batch_of,
    model_of,
    needs_peft,
    pretrained,
    schema_of,
    shake,
)

pytestmark = needs_peft

FAIR = PRETRAINED["vit-fair_lora"]
LIKE = torch.zeros((), dtype=torch.float64)
CROSSED = {"race": ("asian", "black", "white"), "sex": ("female", "male"), "age": ("young", "old")}


def crossed(attribute: str, spec: Any = NOTE) -> tuple[Schema, MultimodalModel]:
    """Return a model that reads an attribute or crossing, its parameters moved."""
    schema = replace(schema_of(spec), attributes=CROSSED)
    kind = "bert" if spec is NOTE else "vit"
    options = {"hidden": [6], "embedding_dim": 4}
    own = {**pretrained(kind, "fair_lora"), "attribute": attribute}
    model = build_model("late_fusion", schema, {**options, "encoders": {"own": own}}, 0).double()
    shake(ParameterBlocks(model))
    return schema, model.eval()


@pytest.mark.parametrize("attribute", ["race", "age", "race*sex", "age*race"])
def test_values_are_as_many_as_groups(attribute: str) -> None:
    _, model = crossed(attribute)
    groups = len(group_names(CROSSED, attribute))
    shapes = {(len(own.values), *own.A.shape) for own in adapters(model).values() if own.values is not None}
    assert shapes == {(groups, 2, 16)}
    assert model.attributes == {*attribute.split("*")}


def test_rows_by_group_sum_to_the_whole_and_hold_their_own_values_only() -> None:
    model, blocks = model_of(FAIR)
    shake(blocks)
    batch = batch_of(PHOTO)
    batch = replace(batch, groups=batch.cells)
    scales = Scales(torch.ones(3, GROUPS, dtype=LIKE.dtype), torch.ones(2, GROUPS, dtype=LIKE.dtype), True)
    rows = path_gradients(model, blocks, batch, RowPlan(frozenset(blocks.names)), scales, None)
    found, whole = (
        rows["encoder/own:fused"],
        weighted_gradients(model, blocks, batch, scales, None)["encoder/own"],
    )
    # Softmax in float32, as elsewhere in this library.
    torch.testing.assert_close(found.sum(0), whole, rtol=1e-6, atol=1e-7)
    sizes = [p.numel() for p in model.encoders["own"].parameters()]
    names = [name for name, _ in model.encoders["own"].named_parameters()]
    for g, row in enumerate(found):
        for name, part in zip(names, row.split(sizes), strict=True):
            if name.endswith("values.weight"):
                own = part.view(2, GROUPS)
                assert own[:, g].abs().min() > 0
                assert not own[:, 1 - g].any()


@pytest.mark.parametrize("spec", [PHOTO, SCAN], ids=["image", "volume"])
def test_groups_that_slip_from_record_to_record_are_found(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up records differ in group, else neither check would see it."""

    def slipped(self: _fair_lora.ByGroup, inputs: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        return right(self, inputs, cells.roll(1))

    schema, model = crossed("race", spec)
    blocks = ParameterBlocks(model)
    check_isolation(model, blocks, schema, LIKE, 3)
    right = _fair_lora.ByGroup.forward
    monkeypatch.setattr(_fair_lora.ByGroup, "forward", slipped)
    with pytest.raises(PrivacyError, match="must not depend on the others"):
        check_isolation(model, blocks, schema, LIKE, 3)


def test_made_up_records_have_as_many_groups_of_each_attribute_as_there_can_be() -> None:
    schema = replace(schema_of(TABLE), attributes=CROSSED)
    found = made_up_batch(schema, LIKE, 3).cells
    assert found is not None
    places = np.unravel_index(found.numpy(), [3, 2, 2])
    assert [len(set(own.tolist())) for own in places] == [3, 2, 2]


def test_a_batch_without_cells_is_refused_and_leaves_nothing_behind() -> None:
    model, blocks = model_of(FAIR)
    batch = replace(batch_of(PHOTO), cells=None)
    scales = Scales(torch.ones(3, GROUPS, dtype=LIKE.dtype), torch.ones(2, GROUPS, dtype=LIKE.dtype), True)
    message = (
        r"`cells` of the batch must be \[3\] for encoder own, which reads \['sex'\], got None; take them"
    )
    with pytest.raises(ShapeError, match=message):
        model(batch)
    with pytest.raises(ShapeError, match=r"`cells` of the batch"):
        record_gradients(model, blocks, batch, scales, None)
    with pytest.raises(ValueError, match="spatial dimensions"):
        model.encoders["own"](batch.modalities["own"][:, :, 0], batch.groups)
    with pytest.raises(LookupError):
        _fair_lora._CODES.get()


def test_other_models_need_no_cells() -> None:
    model, blocks = model_of(PRETRAINED["vit-lora"])
    batch = batch_of(PHOTO)
    without = replace(batch, cells=None)
    scales = Scales(torch.ones(3, GROUPS, dtype=LIKE.dtype), torch.ones(2, GROUPS, dtype=LIKE.dtype), True)
    assert model.attributes == frozenset()
    assert torch.equal(model(without), model(batch))
    one, other = (record_gradients(model, blocks, b, scales, None) for b in (batch, without))
    assert all(torch.equal(one[name], other[name]) for name in blocks.names)


def records_of(attributes: dict[str, Any]) -> SiteRecords:
    words = np.full((6, 8), np.nan, np.float32)
    words[:, :3] = np.arange(1, 19).reshape(6, 3)
    return SiteRecords({"own": words, "lab": np.zeros((6, 2), np.float32)}, np.zeros(6, np.int64), attributes)


MOMENTS = {"lab": np.array([[0.0], [1.0]])}


def test_prediction_reads_the_attribute_that_the_model_does_and_no_other() -> None:
    schema, model = crossed("age*race")
    trained = TrainedModel(model, schema, MOMENTS)
    age, race = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2])
    found = trained.predict(records_of({"age": age, "race": race}))
    for i in range(6):
        index = np.array([i])
        own = {name: values.repeat(6)[6 * i : 6 * i + 6] for name, values in (("age", age), ("race", race))}
        alone = trained.predict(records_of(own))[i]
        np.testing.assert_allclose(
            trained.predict(records_of({"age": age, "race": race}).select(index))[0], alone
        )
        # Float32 softmax and another number of rows.
        np.testing.assert_allclose(found[i], alone, rtol=1e-6)
    other = trained.predict(records_of({"age": 1 - age, "race": race, "sex": np.full(6, -7)}))
    # Of a record whose last ReLU is dead nothing counts.
    assert (np.abs(other - found).max(1) > 1e-5).sum() > 3
    with pytest.raises(ShapeError, match="`race` must be"):
        trained.predict(records_of({"age": age}))


def test_prediction_without_attributes_where_none_is_read() -> None:
    schema = replace(schema_of(NOTE), attributes=CROSSED)
    model, _ = model_of(PRETRAINED["bert-lora"])
    found = TrainedModel(model, schema, MOMENTS).predict(records_of({}))
    assert found.shape == (6, 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"attribute": None},
            r"`attribute` must be given with `tune: fair_lora` .*got None with `tune: fair_",
        ),
        ({"tune": "lora"}, r"`attribute` must be .*left out otherwise, got 'sex' with `tune: lora`"),
        ({"tune": "fair_lroa"}, r"`tune` must be one of .*did you mean `fair_lora`\?"),
        ({"attribute": "sx"}, r"`attribute` must be one of \['sex'\], .*got 'sx'; did you mean `sex`\?"),
        ({"attribute": "sex*sex"}, r"`attribute` must cross different attributes, got 'sex\*sex'"),
        ({"attribute": ["sex"]}, r"`attribute` must be text"),
        ({"attributes": {}}, r"did you mean `attribute`\?"),
        ({"rank": 0}, r"`rank` must be an integer of at least 1"),
    ],
)
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_a_bad_choice_is_refused_in_one_sentence(kind: str, option: dict[str, Any], message: str) -> None:
    case = PRETRAINED[f"{kind}-fair_lora"]
    with pytest.raises(ConfigError, match=f"model.options.encoders.own: .*{message}") as refused:
        model_of(Case(case.spec, {**case.choice, **option}))
    assert "\n" not in str(refused.value)
