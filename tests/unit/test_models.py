"""Models accept any subset of the modalities; what is missing neither speaks nor learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedfair.batch import MultimodalBatch
from fedfair.data.schema import ArrayModality, Column, Schema, TableModality
from fedfair.errors import ConfigError, ShapeError
from fedfair.models import AttentionFusion, ConcatFusion, Head, MultimodalModel, build_model
from tests.oracles.cohort import cohort, small_model

SCHEMA = Schema(
    {
        "labs": TableModality((Column("age"), Column("smoker", ("no", "yes", "former")))),
        "scan": ArrayModality((2, 9, 7)),
    },
    ("healthy", "mild", "severe"),
    {"sex": ("female", "male")},
    ("one",),
)

both_fusions = pytest.mark.parametrize("fusion", ["concat", "attention"])


def batch_of(schema: Schema, records: int = 5) -> MultimodalBatch:
    generator = torch.Generator().manual_seed(0)
    return MultimodalBatch(
        {n: torch.randn(records, *s.shape, generator=generator) for n, s in schema.modalities.items()},
        torch.ones(records, len(schema.modalities), dtype=torch.bool),
        torch.arange(records) % len(schema.classes),
        torch.zeros(records, dtype=torch.int64),
    )


@both_fusions
def test_encoders_follow_the_shapes(fusion: str) -> None:
    model = build_model("late_fusion", SCHEMA, {"fusion": fusion, "embedding_dim": 6}, 0)
    batch = batch_of(SCHEMA)
    embeddings = model.encode(batch)
    assert [tuple(z.shape) for z in embeddings] == [(5, 6), (5, 6)]
    for scores in (model.fusion(embeddings, batch.present), *model.unimodal(embeddings)):
        # One feature width everywhere: the direction term compares the last layers.
        assert (tuple(scores.logits.shape), tuple(scores.features.shape)) == ((5, 3), (5, 6))
    assert torch.equal(model(batch), model.fusion(embeddings, batch.present).logits)


@both_fusions
def test_a_missing_modality_sends_neither_value_nor_gradient(fusion: str) -> None:
    model, batch = small_model(fusion=fusion), cohort()
    noise = {n: v + 7.0 * ~batch.present[:, [m]] for m, (n, v) in enumerate(batch.modalities.items())}
    assert torch.equal(model(batch), model(replace(batch, modalities=noise)))
    absent = batch.select(~batch.present[:, 2])
    model(absent).square().sum().backward()
    assert all(not p.grad.any() for p in model.encoders["notes"].parameters())
    assert any(p.grad.any() for p in model.encoders["ecg"].parameters())


@both_fusions
def test_a_record_without_any_modality_has_finite_scores_and_gradients(fusion: str) -> None:
    model, batch = small_model(fusion=fusion), cohort()
    nothing = batch.select(~batch.present.any(1))
    assert len(nothing) > 0
    model(nothing).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


@both_fusions
def test_records_do_not_influence_each_other(fusion: str) -> None:
    model, batch = small_model(fusion=fusion), cohort()
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    alone = torch.cat([model(batch.select(order[i : i + 1])) for i in range(len(batch))])
    # Matrix products of another height may round otherwise.
    torch.testing.assert_close(alone, model(batch)[order], rtol=1e-12, atol=1e-12)


@both_fusions
def test_the_mask_changes_the_fused_score(fusion: str) -> None:
    model, batch = small_model(fusion=fusion), cohort(complete=True)
    hidden = replace(batch, present=batch.present & torch.tensor([True, True, False]))
    assert (model(batch) - model(hidden)).abs().min() > 0


def test_attention_weighs_present_modalities_only_and_sums_to_one() -> None:
    fusion = AttentionFusion(3, 4, 2, 2)
    # With a constant value network the output is the sum of the attention weights.
    nn.init.zeros_(fusion.value[0].weight)
    nn.init.ones_(fusion.value[0].bias)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False] * 3])
    embeddings = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    joined = fusion.join(embeddings, present)
    torch.testing.assert_close(joined[:, 0], torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_concatenation_puts_the_token_in_the_place_of_a_missing_modality() -> None:
    fusion = ConcatFusion(2, 3, 4, 2)
    token = fusion.missing[1].weight
    nn.init.normal_(token, generator=torch.Generator().manual_seed(0))
    embedding = torch.ones(1, 3)
    present = torch.tensor([[True, False]])
    expected = fusion.body(torch.cat([embedding, token[None]], 1))
    torch.testing.assert_close(fusion.join([embedding, torch.zeros(1, 3)], present), expected)


def test_the_seed_alone_draws_the_parameters() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model("late_fusion", SCHEMA, {}, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator must not move"
    torch.manual_seed(2)
    again = build_model("late_fusion", SCHEMA, {}, 5).state_dict()
    other = build_model("late_fusion", SCHEMA, {}, 6).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_hidden_widths_can_differ_by_modality() -> None:
    model = build_model("late_fusion", SCHEMA, {"hidden": [5], "hidden_by_modality": {"scan": [3, 4]}}, 0)
    assert model.encoders["labs"][0].out_features == 5
    convolutions = [m.out_channels for m in model.encoders["scan"] if isinstance(m, nn.Conv2d)]
    assert convolutions == [3, 4]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("late_fusoin", {}, "did you mean `late_fusion`"),
        ("late_fusion", {"fusion": "sum"}, "`model.options.fusion` must be one of"),
        ("late_fusion", {"embeding_dim": 4}, "did you mean `embedding_dim`"),
        ("late_fusion", {"hidden_by_modality": {"xray": [3]}}, "xray"),
        ("no_such_module_at_all:factory", {}, "importable module"),
        ("fedfair.models:late_fusionn", {}, "did you mean `late_fusion`"),
        ("fedfair.data.schema:Schema", {"modalities": SCHEMA.modalities}, "model.options"),
        ("tests.unit.test_models:not_a_model", {}, "must build a MultimodalModel, got Linear"),
    ],
)
def test_build_model_refuses_by_name(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, SCHEMA, options, 0)


def not_a_model(schema: Schema) -> nn.Module:
    return nn.Linear(len(schema.modalities), 1)


def own_model(schema: Schema, width: int = 3) -> MultimodalModel:
    encoders = {name: nn.Sequential(nn.Flatten(), nn.LazyLinear(width)) for name in schema.modalities}
    heads = {name: Head(nn.Identity(), nn.Linear(width, len(schema.classes))) for name in schema.modalities}
    model = MultimodalModel(encoders, heads, ConcatFusion(len(encoders), width, 4, len(schema.classes)))
    model(batch_of(schema))
    return model


def test_a_user_s_factory_builds_the_model() -> None:
    model = build_model("tests.unit.test_models:own_model", SCHEMA, {"width": 2}, 0)
    assert model(batch_of(SCHEMA)).shape == (5, 3)


def test_a_shape_without_an_encoder_is_refused() -> None:
    schema = replace(SCHEMA, modalities={"volume": ArrayModality((1, 4, 4, 4))})
    with pytest.raises(ConfigError, match=r"encoders\.volume.*got shape \(1, 4, 4, 4\)"):
        build_model("late_fusion", schema, {}, 0)


def test_heads_must_name_the_encoders_modalities() -> None:
    with pytest.raises(ShapeError, match="heads"):
        MultimodalModel(
            {"a": nn.Identity()}, {"b": Head(nn.Identity(), nn.Linear(3, 2))}, ConcatFusion(1, 3, 2, 2)
        )
