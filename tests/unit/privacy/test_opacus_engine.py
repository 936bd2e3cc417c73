"""Opacus's engine against the functional one, against single records, and what it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedfair import blocks as blocks_module
from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.data.schema import ArrayModality, Schema
from fedfair.errors import PrivacyError
from fedfair.local import LocalTraining
from fedfair.models import ConcatFusion, Fusion, Head, MultimodalModel, build_model
from fedfair.paths import RowPlan, Scales
from fedfair.privacy.noise import Noise
from fedfair.privacy.opacus_engine import check_opacus, opacus_mechanism, train_with_opacus
from fedfair.privacy.sample_level import Mechanism, mechanism, train_privately
from fedfair.privacy.settings import PrivacyConfig
from fedfair.privacy.single_records import single_gradients
from fedfair.terms import PreparedTerms
from tests.oracles.cohort import GROUPS, WIDTHS, cohort, small_model

pytest.importorskip("opacus")

SCHEMA = Schema(
    {name: ArrayModality((width,)) for name, width in WIDTHS.items()},
    ("no", "yes"),
    {"sex": tuple(f"group {g}" for g in range(GROUPS))},
    ("all",),
)
SETTINGS = LocalTraining("weights", chunk_size=7, learning_rate=0.1, momentum=0.9)
UNCLIPPED = 1e3  # far above every gradient of the cohort
OPACUS_SLACK = 1e-6  # Opacus divides by norm + 1e-6

both_fusions = pytest.mark.parametrize("fusion", ["concat", "attention"])


class Silent(Noise):
    """Coins of a fixed key, the same for both engines, and normals that are zero."""

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return like.new_zeros(shape)

    def generator(self) -> torch.Generator:
        if not hasattr(self, "one"):
            self.one = super().generator()
        return self.one

    def poisson(self, n: int, rate: float) -> Tensor:
        return torch.rand(n, generator=self.generator()) < rate


def scales(
    live: bool = False, heads: tuple[float, ...] = (1.0, 1.0, 1.0), kind: torch.dtype = torch.float64
) -> Scales:
    own = torch.tensor(heads, dtype=kind)[:, None].expand(-1, GROUPS).contiguous()
    return Scales(torch.ones(len(heads) + 1, GROUPS, dtype=kind), own, live)


FEDAVG, MIMO = scales(), scales(True, (0.4, 1.7, 2.5))


def privacy(norm: float = 0.5, **changes: object) -> PrivacyConfig:
    given = {
        "mode": "sample",
        "target_delta": 1e-5,
        "noise_multiplier": 1.5,
        "sample_rate": 0.3,
        "local_steps": 4,
        "expected_batch": 20.0,
        "max_grad_norm": norm,
        "clipping": "flat",
        "engine": "opacus",
    }
    # statistics.noise_multiplier is asked for beside noise_multiplier
    return PrivacyConfig(
        **(given | changes), statistics=replace(PrivacyConfig().statistics, noise_multiplier=1.0)
    )


def checked(model: MultimodalModel, schema: Schema = SCHEMA) -> tuple[MultimodalModel, ParameterBlocks]:
    blocks = ParameterBlocks(model)
    check_opacus(model, blocks, schema, model.fusion.classifier.weight.new_zeros(()), GROUPS)
    return model, blocks


def public(blocks: ParameterBlocks, given: Scales, config: PrivacyConfig, own: bool = True) -> Mechanism:
    paths = RowPlan().paths(tuple(WIDTHS), given.live, False)
    return (opacus_mechanism if own else mechanism)(blocks, paths, given, tuple(WIDTHS), config)


def by_opacus(
    model: MultimodalModel,
    records: MultimodalBatch,
    given: Scales,
    config: PrivacyConfig,
    noise: Noise,
    settings: LocalTraining = SETTINGS,
) -> dict[str, Tensor]:
    model, blocks = checked(model)
    return train_with_opacus(
        model, blocks, records, given, None, settings, public(blocks, given, config), noise
    )


def by_own_engine(
    model: MultimodalModel,
    records: MultimodalBatch,
    given: Scales,
    config: PrivacyConfig,
    noise: Noise,
    settings: LocalTraining = SETTINGS,
) -> dict[str, Tensor]:
    blocks = ParameterBlocks(model)
    released = public(blocks, given, config, own=False)
    return train_privately(model, blocks, records, given, None, settings, released, noise)


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert list(one) == list(other)
    assert all(a.shape == other[key].shape for key, a in one.items())
    return max(float((a - other[key]).abs().max()) for key, a in one.items())


def large_units(factor: float) -> MultimodalBatch:
    records = cohort()
    return replace(records, modalities={n: v * factor for n, v in records.modalities.items()})


# --- equal to the functional engine -------------------------------------------------------------------


@both_fusions
@pytest.mark.parametrize("given", [FEDAVG, MIMO], ids=["fedavg", "mimo"])
def test_unclipped_steps_are_those_of_the_functional_engine(fusion: str, given: Scales) -> None:
    config = privacy(UNCLIPPED)
    got = by_opacus(small_model(fusion=fusion), cohort(), given, config, Silent.fixed(3))
    wanted = by_own_engine(small_model(fusion=fusion), cohort(), given, config, Silent.fixed(3))
    assert max(float(v.abs().max()) for v in wanted.values()) > 1e-2
    assert difference(got, wanted) < 1e-10  # float64, sums in another order


@both_fusions
def test_clipped_steps_are_those_of_the_functional_engine(fusion: str) -> None:
    # Norms of 1e7 hide the 1e-6 that Opacus adds to them; the rate keeps the model where it was.
    settings = replace(SETTINGS, learning_rate=1e-7)
    records, config = large_units(1e7), privacy(1e6)
    got = by_opacus(small_model(fusion=fusion), records, FEDAVG, config, Silent.fixed(3), settings)
    wanted = by_own_engine(small_model(fusion=fusion), records, FEDAVG, config, Silent.fixed(3), settings)
    loose = by_own_engine(
        small_model(fusion=fusion), records, FEDAVG, privacy(1e12), Silent.fixed(3), settings
    )
    assert difference(wanted, loose) > 1e-3, "some record must be clipped"
    assert difference(got, wanted) < 1e-10


@both_fusions
def test_float32_at_an_ordinary_bound(fusion: str) -> None:
    records = cohort().to(torch.device("cpu"), torch.float32)
    given, config = scales(kind=torch.float32), privacy(0.5)
    got = by_opacus(small_model(fusion=fusion).float(), records, given, config, Silent.fixed(3))
    wanted = by_own_engine(small_model(fusion=fusion).float(), records, given, config, Silent.fixed(3))
    assert got["fusion:all"].dtype == torch.float32
    # Four steps at rate .1 of about 30 records of norm .5 over 20, each off by 1e-6 of itself at most.
    assert difference(got, wanted) < 1e-6


@both_fusions
@pytest.mark.parametrize("given", [FEDAVG, MIMO], ids=["fedavg", "mimo"])
def test_clipping_acts_on_the_whole_gradient_of_single_records(fusion: str, given: Scales) -> None:
    bound, steps, rate, divisor = 0.5, 4, 0.1, 20.0
    got = by_opacus(
        small_model(fusion=fusion),
        cohort(),
        given,
        privacy(bound),
        Silent.fixed(3),
        replace(SETTINGS, momentum=0.0),
    )
    model, noise = small_model(fusion=fusion), Silent.fixed(3)
    blocks, clipped = ParameterBlocks(model), 0
    before = blocks.snapshot()
    for _ in range(steps):
        batch = cohort().select(noise.poisson(96, 0.3))
        rows = single_gradients(model, blocks, batch, given)
        norm = torch.cat(list(rows.values()), 1).norm(dim=1)
        clipped += int((norm > bound).sum())
        ours = (bound / norm).clamp(max=1.0)
        # Opacus clips once more what does not exceed the bound, at that bound less its slack.
        factor = ours * (bound / (ours * norm + OPACUS_SLACK)).clamp(max=1.0)
        for name, own in rows.items():
            blocks.vectors[name] -= rate / divisor * (factor @ own)
    wanted = {f"{n}:all": (v - before[n])[None] for n, v in blocks.vectors.items()}
    assert clipped > 10
    assert difference(got, wanted) < 1e-10


def test_two_rounds_in_a_row_go_on_from_the_first() -> None:
    config, ours, theirs = privacy(UNCLIPPED), small_model(), small_model()
    for number in range(2):
        got = by_opacus(ours, cohort(), MIMO, config, Silent.fixed(number))
        wanted = by_own_engine(theirs, cohort(), MIMO, config, Silent.fixed(number))
        assert difference(got, wanted) < 1e-10
    final = dict(theirs.named_parameters())
    assert all((p - final[n]).abs().max() < 1e-10 for n, p in ours.named_parameters())


# --- noise, coins, empty draws ------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "steps"), [(96, 1), (0, 3)])
def test_noise_has_the_declared_deviation(count: int, steps: int) -> None:
    settings, config = replace(SETTINGS, momentum=0.0), privacy(0.5, local_steps=steps)
    records, (model, blocks) = cohort().select(torch.arange(count)), checked(small_model())
    start, told, values = blocks.snapshot(), public(blocks, FEDAVG, config), []
    for seed in range(40):
        rows = []
        for kind in (Noise, Silent):
            blocks.load(start)
            rows.append(
                train_with_opacus(
                    model, blocks, records, FEDAVG, None, settings, told, kind.fixed(seed, "noise")
                )
            )
        values += [
            (noised - clean).flatten() for noised, clean in zip(*(r.values() for r in rows), strict=True)
        ]
    # Rate sigma C / expected batch; noise that repeats would add up to `steps` instead of its root.
    deviation = 0.1 * 1.5 * 0.5 / 20.0 * steps**0.5
    square = float((torch.cat(values) / deviation).square().sum())
    size = sum(len(v) for v in values)
    assert size > 5000  # a standard error below 2 % of the variance
    inside = [stats.chi2.ppf(5e-5, size) < square * s**2 < stats.chi2.isf(5e-5, size) for s in (1.0, 0.9)]
    assert inside == [True, False]


def test_a_released_mechanism_is_that_of_ones() -> None:
    blocks = ParameterBlocks(small_model())
    told = public(blocks, MIMO, privacy(0.5))
    assert set(told.deviations.values()) == {0.75}
    assert set(told.sensitivities.values()) == {0.5}
    assert all(bool((w == 1).all()) for w in told.weights.values())
    assert told.shapes == {f"{name}:all": (1, len(v)) for name, v in blocks.vectors.items()}


@pytest.mark.parametrize("rate", [1e-9, 0.3])
@pytest.mark.parametrize("count", [0, 1, 96])
def test_every_block_is_noised_whatever_is_drawn(rate: float, count: int) -> None:
    records = cohort().select(torch.arange(count))
    rows = by_opacus(small_model(), records, MIMO, privacy(sample_rate=rate), Noise.fixed(1))
    blocks = ParameterBlocks(small_model())
    assert {key: tuple(v.shape) for key, v in rows.items()} == {
        f"{n}:all": (1, len(v)) for n, v in blocks.vectors.items()
    }
    assert all(bool((v != 0).all()) for v in rows.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_record_that_is_not_finite_counts_zero(value: float) -> None:
    records = cohort(complete=True)
    broken = records.modalities["ecg"].clone()
    broken[5, 0] = value
    given = replace(records, modalities={**records.modalities, "ecg": broken})
    rest = records.select(torch.arange(96) != 5)
    config = privacy(0.5, sample_rate=1.0)
    got = by_opacus(small_model(), given, MIMO, config, Silent.fixed(0))
    assert difference(got, by_opacus(small_model(), rest, MIMO, config, Silent.fixed(0))) < 1e-12


def test_one_record_adds_no_more_than_the_bound_also_to_a_large_model_in_float32() -> None:
    def wide(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 120_000), nn.Linear(120_000, 4))

    # In units in which the change is far above the rounding of the parameters it is added to.
    bound, settings = 1e6, replace(SETTINGS, learning_rate=1.0, momentum=0.0)
    config = privacy(bound, sample_rate=1.0, local_steps=1, expected_batch=1.0)
    (model, blocks), worst = checked(own_model(wide).float()), 0.0
    start, given = blocks.snapshot(), scales(True, kind=torch.float32)
    for i in range(60, 64):
        blocks.load(start)
        record = large_units(1e7).select(torch.tensor([i])).to(torch.device("cpu"), torch.float32)
        told = public(blocks, given, config)
        rows = train_with_opacus(model, blocks, record, given, None, settings, told, Silent.fixed(0))
        worst = max(worst, float(torch.cat([v.double().flatten() for v in rows.values()]).norm()))
    assert bound * 0.999 < worst <= bound * (1 + 1e-6)


def test_nothing_is_drawn_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    one = by_opacus(small_model(), cohort(), MIMO, privacy(), Noise.from_os())
    other = by_opacus(small_model(), cohort(), MIMO, privacy(), Noise.from_os())
    assert torch.equal(torch.get_rng_state(), state)
    assert difference(one, other) > 0


def test_the_coins_generator_has_a_state_of_secret_words() -> None:
    words = np.frombuffer(Noise.fixed(1)._coins.update(bytes(8 * 624)), "<u8") >> 32
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.astype(np.uint32), "pos": 624}}
    wanted = (twister.random_raw(2000) & ((1 << 24) - 1)) / 2**24  # torch.rand keeps 24 bits
    got = torch.rand(2000, generator=Noise.fixed(1).generator()).numpy()
    assert np.array_equal(got, wanted.astype(np.float32))


# --- the model afterwards -----------------------------------------------------------------------------


def traces(model: MultimodalModel) -> list[object]:
    """Return all that hooks could leave on a model."""
    hooks = [(len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()]
    return [
        list(model.state_dict()),
        hooks,
        *(sorted(vars(x)) for x in (*model.modules(), *model.parameters())),
    ]


def test_training_leaves_the_model_as_it_was_but_for_its_values() -> None:
    model = small_model()
    blocks = ParameterBlocks(model)
    before, identities = traces(model), [id(p) for p in model.parameters()]
    check_opacus(model, blocks, SCHEMA, torch.zeros((), dtype=torch.float64), GROUPS)
    assert traces(model) == before
    start = blocks.snapshot()
    rows = train_with_opacus(
        model, blocks, cohort(), MIMO, None, SETTINGS, public(blocks, MIMO, privacy()), Noise.fixed(0)
    )
    assert traces(model) == before
    assert [id(p) for p in model.parameters()] == identities
    assert all(p.grad is None for p in model.parameters())
    for name, own in blocks.parameters.items():
        vector = blocks.vectors[name]
        assert all(p.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr() for p in own)
        assert torch.equal(rows[f"{name}:all"][0], vector - start[name])


# --- refusals -----------------------------------------------------------------------------------------


def by_group(given: Scales) -> Scales:
    own = given.unimodal.clone()
    own[0, 1] = 2.0
    return replace(given, unimodal=own)


@pytest.mark.parametrize(
    ("given", "terms", "config", "reason"),
    [
        (by_group(FEDAVG), None, privacy(), "same for all groups"),
        (replace(FEDAVG, fused=FEDAVG.fused * 1.5), None, privacy(), "fused loss must be 1"),
        (FEDAVG, PreparedTerms(None, None), privacy(), "no extra loss terms"),
        (FEDAVG, None, privacy(exact=["gradients"]), "`privacy.exact`"),
        (FEDAVG, None, privacy(clipping="block"), "`privacy.clipping` must be flat"),
    ],
    ids=["groups", "fused", "terms", "exact", "block"],
)
def test_what_it_cannot_do_is_refused(
    given: Scales, terms: PreparedTerms | None, config: PrivacyConfig, reason: str
) -> None:
    model, blocks = checked(small_model())
    start = blocks.snapshot()
    with pytest.raises(PrivacyError, match=rf"(?s){reason}.*engine: functional"):
        train_with_opacus(
            model, blocks, cohort(), given, terms, SETTINGS, public(blocks, given, config), Noise.fixed(0)
        )
    assert all(torch.equal(v, start[n]) for n, v in blocks.vectors.items())


def test_group_rows_are_refused() -> None:
    model, blocks = checked(small_model())
    paths = RowPlan(frozenset(blocks.names)).paths(tuple(WIDTHS), False, False)
    rows = opacus_mechanism(blocks, paths, FEDAVG, tuple(WIDTHS), privacy())
    with pytest.raises(PrivacyError, match=r"group rows.*engine: functional"):
        train_with_opacus(model, blocks, cohort(), FEDAVG, None, SETTINGS, rows, Noise.fixed(0))


def test_an_unchecked_model_is_refused() -> None:
    model = small_model()
    blocks = ParameterBlocks(model)
    with pytest.raises(PrivacyError, match=r"check_opacus.*engine: functional"):
        train_with_opacus(
            model, blocks, cohort(), FEDAVG, None, SETTINGS, public(blocks, FEDAVG, privacy()), Noise.fixed(0)
        )


class SequenceFirst(nn.Module):
    """Three tokens per record, put before the batch: with three records both axes agree in length."""

    def __init__(self, width: int) -> None:  # noqa: ARG002
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(1, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, :3].T[..., None]).mean(0)


class Transformer(nn.Module):
    def __init__(self, width: int) -> None:  # noqa: ARG002
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, :3].T[..., None].expand(-1, -1, 4)).mean(0)


class Permuted(nn.Module):
    """Sorts the records, encodes them and puts them back: every shape is right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return self.inner(x[order])[order.argsort()]


class Slices(nn.Module):
    """Encodes all slices of all records as one batch of B * S."""

    def __init__(self, width: int) -> None:  # noqa: ARG002
        super().__init__()
        self.inner = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.reshape(-1, 1)).reshape(len(x), -1, 4).mean(1)


class PresentOnly(nn.Module):
    """Encodes those records only whose values are not all zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        present = x.abs().sum(1) > 0
        result = x.new_zeros(len(x), 4)
        result[present] = self.inner(x[present])
        return result


class SkippedIfAbsent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if bool(x.any()) else x.new_zeros(len(x), 4)


class Normalised(nn.Sequential):
    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__(nn.Linear(width, 4), nn.BatchNorm1d(4, affine=affine))


class NormalisedPlainly(Normalised):
    """Batch statistics without a parameter, which Opacus's validator does not look at."""

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)


class RootParameter(Fusion):
    """Parameters beside its layers, and two inputs."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 2))
        self.shift = nn.Parameter(torch.zeros(4))

    def join(self, embeddings: list[Tensor], present: Tensor) -> Tensor:  # noqa: ARG002
        return sum(embeddings) + self.shift


def own_model(encoder: Callable[[int], nn.Module], fusion: Fusion | None = None) -> MultimodalModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoders = {name: encoder(width) for name, width in WIDTHS.items()}
        heads = {name: Head(nn.Identity(), nn.Linear(4, 2)) for name in WIDTHS}
        return MultimodalModel(encoders, heads, fusion or ConcatFusion(3, 4, 4, 2)).double()


@pytest.mark.parametrize(
    "encoder",
    [
        SequenceFirst,
        Transformer,
        Permuted,
        Slices,
        PresentOnly,
        SkippedIfAbsent,
        Normalised,
        NormalisedPlainly,
    ],
)
def test_models_that_hooks_get_wrong_are_refused(
    encoder: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The blocks would refuse batch statistics first.
    monkeypatch.setattr(blocks_module, "_check_batch_statistics", lambda *_: None)
    model = own_model(encoder)
    blocks = ParameterBlocks(model)
    before = traces(model)
    with pytest.raises(PrivacyError, match=r"(?s)got .*engine: functional"):
        check_opacus(model, blocks, SCHEMA, torch.zeros((), dtype=torch.float64), GROUPS)
    assert traces(model) == before
    with pytest.raises(PrivacyError, match="check_opacus"):
        train_with_opacus(
            model, blocks, cohort(), FEDAVG, None, SETTINGS, public(blocks, FEDAVG, privacy()), Noise.fixed(0)
        )


@pytest.mark.parametrize("encoder", [Transformer, Normalised])
def test_what_opacus_s_validator_rejects_is_refused_as_it_says(
    encoder: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "_check_batch_statistics", lambda *_: None)
    with pytest.raises(PrivacyError, match=r"replace the layer or set `privacy.engine: functional`"):
        checked(own_model(encoder))


def test_parameters_outside_layers_are_refused() -> None:
    with pytest.raises(PrivacyError, match=r"keep every parameter in a layer.*engine: functional"):
        checked(own_model(lambda width: nn.Linear(width, 4), RootParameter()))


def test_a_difference_names_its_block() -> None:
    with pytest.raises(
        PrivacyError, match=r"block `encoder/ecg` must be those of single records, got a difference of \d"
    ):
        checked(own_model(Permuted))


@pytest.mark.parametrize(
    "encoder",
    [
        lambda width: nn.Sequential(nn.Linear(width, 4), nn.Dropout(0.5)),
        lambda width: nn.Sequential(nn.Linear(width, 4), nn.GroupNorm(2, 4), nn.ReLU()),
        lambda width: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4)),
    ],
    ids=["dropout", "group norm", "layer norm"],
)
def test_plain_models_are_taken(encoder: Callable[[int], nn.Module]) -> None:
    model, _ = checked(own_model(encoder))
    assert all(module.training for module in model.modules())


@both_fusions
def test_images_are_taken(fusion: str) -> None:
    schema = replace(SCHEMA, modalities={"scan": ArrayModality((2, 9, 7)), "lab": ArrayModality((3,))})
    checked(build_model("late_fusion", schema, {"fusion": fusion, "embedding_dim": 4}, 0), schema)
