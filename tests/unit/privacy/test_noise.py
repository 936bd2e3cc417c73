"""Noise: its distribution, its independence, and that nobody can repeat it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from fedfair.errors import ConfigError, PrivacyError
from fedfair.privacy.noise import Noise

# A correct generator fails a two-sided test with probability ALPHA; the draws below are fixed, so the
# outcome repeats, and about 15 statistics at 1e-4 leave 0.2 % that a change of key meets a bad draw.
ALPHA = 1e-4
Z = float(stats.norm.isf(ALPHA / 2))
N = 200_000


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return Noise.fixed(0, "values").gaussian((N,))


def test_moments_are_those_of_a_standard_normal(values: np.ndarray) -> None:
    # The k-th moment has variance (m_2k - m_k^2) / n, with m_k = 1, 3, 15, 105 for k = 2, 4, 6, 8.
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((values**power).mean() - moment) < Z * (variance / N) ** 0.5


@pytest.mark.parametrize("scale", [1.0, 0.99, 3**-0.5])
def test_chi_square_sees_a_wrong_scale(values: np.ndarray, scale: float) -> None:
    total = ((scale * values) ** 2).sum()
    inside = stats.chi2.ppf(ALPHA / 2, N) < total < stats.chi2.isf(ALPHA / 2, N)
    # sqrt(2/n) is 0.3 % of the variance, so a scale of .99 lies 6 standard errors away.
    assert inside == (scale == 1.0)


def test_distribution_is_normal_also_in_the_tails(values: np.ndarray) -> None:
    assert stats.kstest(values, "norm").pvalue > ALPHA
    for cut in (3.0, 4.0):
        expected = 2 * stats.norm.sf(cut)
        count = int((np.abs(values) > cut).sum())
        assert stats.binomtest(count, N, expected).pvalue > ALPHA
    # KS against a normal of scale .98 shows that this sample would tell.
    assert stats.kstest(values, "norm", args=(0, 0.98)).pvalue < ALPHA


def test_values_are_uncorrelated_with_each_other_and_across_steps(values: np.ndarray) -> None:
    # Each sample correlation of independent values has standard error 1/sqrt(n); N // 2 pairs a value
    # with the other one of its Box-Muller pair, whose squares would betray a shared radius.
    for lag in (1, 2, 3, N // 2):
        early, late = values[:-lag], values[lag:]
        for power in (1, 2):
            assert abs(np.corrcoef(early**power, late**power)[0, 1]) < Z / len(late) ** 0.5
    noise = Noise.fixed(1)
    first, second = noise.gaussian((50_000,)), noise.gaussian((50_000,))
    assert abs(np.corrcoef(first, second)[0, 1]) < Z / 50_000**0.5


def test_bits_have_the_claimed_resolution() -> None:
    uniform = Noise.fixed(0)._uniform(Noise.fixed(0)._coins, 4096)
    whole = uniform * 2.0**53
    assert (whole == np.floor(whole)).all()
    # Half of the lowest bits are set: within Z standard errors of a fair coin.
    assert abs((whole % 2).mean() - 0.5) < Z * 0.5 / 4096**0.5
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_noise_from_the_os_differs_between_processes() -> None:
    program = (
        "import torch; torch.manual_seed(0)\n"
        "from fedfair.privacy.noise import Noise\n"
        "print(Noise.from_os().gaussian((4,)).tolist(), torch.randn(4).tolist(), sep='|')"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    (own, seeded), (other, same) = (child.communicate(timeout=60)[0].split("|") for child in running)
    assert own != other
    # torch's own generator, with the seed that all sites of a run share, is what must not be used.
    assert seeded == same


def test_noise_from_the_os_differs_within_a_process() -> None:
    first, second = Noise.from_os().gaussian((1000,)), Noise.from_os().gaussian((1000,))
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / 1000**0.5  # not seeded: 6 sd, 2e-9


def test_fixed_noise_repeats_and_depends_on_each_label() -> None:
    def draw(*place: int | str) -> list[float]:
        return Noise.fixed(7, *place).gaussian((3,)).tolist()

    assert draw("a", 1) == draw("a", 1)
    others = [
        draw("a", 2),
        draw("b", 1),
        draw("a", "1"),
        draw("a"),
        Noise.fixed(8, "a", 1).gaussian((3,)).tolist(),
    ]
    assert len({tuple(x) for x in [draw("a", 1), *others]}) == 6


def test_draws_do_not_repeat_and_continue_the_stream() -> None:
    noise, again = Noise.fixed(3), Noise.fixed(3)
    parts = [noise.gaussian((2,)) for _ in range(3)]
    assert len({float(x) for part in parts for x in part}) == 6
    assert np.array_equal(parts[0], again.gaussian((2,)))


def test_coins_do_not_shift_the_normals_nor_normals_the_coins() -> None:
    plain, mixed = Noise.fixed(5), Noise.fixed(5)
    mixed.poisson(101, 0.3)
    assert np.array_equal(plain.gaussian((6,)), mixed.gaussian((6,)))
    plain.poisson(101, 0.3)
    assert torch.equal(plain.poisson(50, 0.3), mixed.poisson(50, 0.3))


def test_streams_of_one_key_are_different() -> None:
    noise = Noise.fixed(0)
    coins, normals = noise._uniform(noise._coins, 10), noise._uniform(noise._normals, 10)
    assert not (coins == normals).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3), (2, 0)])
def test_tensors_have_the_shape_and_dtype_asked_for(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    drawn = Noise.fixed(0).normal(shape, torch.zeros(1, dtype=dtype))
    assert (drawn.shape, drawn.dtype) == (shape, dtype)
    expected = torch.from_numpy(np.array(Noise.fixed(0).gaussian(shape)))
    assert torch.equal(drawn, expected.to(dtype))


def test_integer_tensors_are_refused() -> None:
    with pytest.raises(PrivacyError, match=r"`like` must be of a floating dtype .*, got torch.int64"):
        Noise.fixed(0).normal((2,), torch.zeros(2, dtype=torch.int64))


def sizes_of(mask: np.ndarray) -> tuple[float, float, float]:
    """Return chi-square p-values of the size's variance, of its mean, and of per-record counts."""
    draws, n = mask.shape
    variance = n * RATE * (1 - RATE)
    size = mask.sum(1)
    spread = ((size - n * RATE) ** 2).sum() / variance
    mean = (size.mean() - n * RATE) / (variance / draws) ** 0.5
    counts = ((mask.sum(0) - draws * RATE) ** 2 / (draws * RATE * (1 - RATE))).sum()

    def two_sided(x: float, freedom: int) -> float:
        return float(2 * min(stats.chi2.cdf(x, freedom), stats.chi2.sf(x, freedom)))

    return two_sided(spread, draws), float(2 * stats.norm.sf(abs(mean))), two_sided(counts, n)


RECORDS, RATE, DRAWS = 700, 64 / 700, 3000


def test_poisson_sizes_have_the_binomial_variance() -> None:
    noise = Noise.fixed(11)
    mask = np.stack([noise.poisson(RECORDS, RATE).numpy() for _ in range(DRAWS)])
    # T7: var/(n q (1-q)) is within Z sqrt(2/3000) = .10 of 1.
    assert min(sizes_of(mask)) > ALPHA
    assert abs(mask.sum(1).var() / (RECORDS * RATE * (1 - RATE)) - 1) < Z * (2 / DRAWS) ** 0.5


def test_a_shuffling_sampler_would_be_caught() -> None:
    generator = np.random.default_rng(0)
    mask = np.zeros((DRAWS, RECORDS), dtype=bool)
    for start in range(0, DRAWS, 11):  # an epoch: 10 batches of 64 and a last one of 60
        order = generator.permutation(RECORDS)
        for step, batch in enumerate(np.split(order, range(64, RECORDS, 64))):
            if start + step < DRAWS:
                mask[start + step, batch] = True
    spread, _, counts = sizes_of(mask)
    assert spread < 1e-12
    assert counts < 1e-12
    assert mask.sum(1).var() / (RECORDS * RATE * (1 - RATE)) < 0.05


def test_coins_of_neighbouring_records_and_steps_are_independent() -> None:
    noise = Noise.fixed(12)
    mask = np.stack([noise.poisson(1000, 0.3).numpy() for _ in range(100)]).astype(float)
    for early, late in [(mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])]:
        assert abs(np.corrcoef(early.ravel(), late.ravel())[0, 1]) < Z / early.size**0.5


def test_poisson_limits() -> None:
    everyone = Noise.fixed(0).poisson(1000, 1.0)
    assert everyone.dtype == torch.bool
    assert everyone.all()
    nobody = Noise.fixed(0).poisson(0, 0.5)
    assert (nobody.shape, nobody.dtype) == ((0,), torch.bool)
    assert not Noise.fixed(0).poisson(1000, 1e-12).any()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"`rate` must be in \(0, 1\]"):
        Noise.fixed(0).poisson(3, rate)


def test_noise_cannot_be_duplicated() -> None:
    # Two copies would draw the same values, and their releases' difference would have no noise.
    with pytest.raises(TypeError):
        copy.deepcopy(Noise.fixed(0))
    with pytest.raises(TypeError):
        pickle.dumps(Noise.fixed(0))


def test_a_forked_copy_refuses_to_draw() -> None:
    program = (
        "import os\n"
        "from fedfair.errors import PrivacyError\n"
        "from fedfair.privacy.noise import Noise\n"
        "noise = Noise.from_os()\n"
        "child = os.fork()\n"
        "for draw in (lambda: noise.gaussian((1,)), lambda: noise.poisson(1, 0.5)):\n"
        "    try:\n"
        "        draw()\n"
        "        drew = True\n"
        "    except PrivacyError as error:\n"
        "        drew = 'forked copy' not in str(error)\n"
        "    if drew == (child == 0):\n"
        "        os._exit(1)\n"
        "os._exit(os.waitpid(child, 0)[1] if child else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
