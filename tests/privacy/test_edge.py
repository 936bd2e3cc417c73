"""The edge of a site: what is undeclared, unpaid, of another shape or not a number stays inside."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from fedfair import wire
from fedfair.errors import ConfigError, PrivacyBudgetExhausted, PrivacyError, RunError
from fedfair.privacy.accounting import Event
from fedfair.privacy.edge import Declaration, Discreet, Public, Released, guard
from fedfair.site import Site
from tests.privacy.hospital import Lab, configured
from tests.privacy.people import patients

EVENT = Event(2.0, 0.1, 4)
VALUE = np.ones((2, 3))
RELEASED = Released(EVENT, 1.0, (2, 3))


def refusal(
    arrays: dict[str, np.ndarray], declared: dict[str, Declaration], charged: tuple[Event, ...] = (EVENT,)
) -> str:
    with pytest.raises(PrivacyError) as caught:
        guard("north", arrays, declared, charged)
    return str(caught.value)


def test_what_is_declared_and_charged_leaves() -> None:
    guard("north", {"rows/a": VALUE, "b": VALUE}, {"rows/a": RELEASED, "b": Public("a constant")}, (EVENT,))
    guard("north", {}, {}, ())


def test_an_undeclared_leaf_is_refused_whatever_its_name(caplog: pytest.LogCaptureFixture) -> None:
    """The name may hold what must not leave: it stands in the site's own log alone."""
    for name in ("rows/b", "num_examples", "train/loss", ""):
        text = refusal({"rows/a": VALUE, name: VALUE}, {"rows/a": RELEASED})
        assert "got 1 that do not match" in text
        assert f"['{name}']" not in text
        assert f"['{name}']" in caplog.messages[-1]


def test_a_declared_leaf_that_is_missing_is_refused() -> None:
    text = refusal({"rows/a": VALUE}, {"rows/a": RELEASED, "rows/b": RELEASED})
    assert "got 1 that do not match" in text


@pytest.mark.parametrize(
    "charged",
    [(), (Event(2.0, 0.1, 3),), (Event(1.9, 0.1, 4),), (Event(2.0, 0.2, 4),), (Event(2.0, 1.0, 1),)],
)
def test_an_event_that_was_not_charged_is_refused(charged: tuple[Event, ...]) -> None:
    assert "`rows/a` of site north must be charged" in refusal(
        {"rows/a": VALUE}, {"rows/a": RELEASED}, charged
    )


@pytest.mark.parametrize("shape", [(3, 2), (1, 3), (6,), (2, 3, 1), (0, 3)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    assert "public shape (2, 3)" in refusal({"rows/a": np.ones(shape)}, {"rows/a": RELEASED})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    poisoned = VALUE.copy()
    poisoned[1, 2] = value
    words = refusal({"rows/a": poisoned}, {"rows/a": RELEASED})
    assert "must be finite" in words
    assert "[" not in words


def test_an_unbounded_sensitivity_is_refused_unless_nothing_was_promised() -> None:
    words = refusal({"rows/a": VALUE}, {"rows/a": Released(EVENT, np.inf, (2, 3))})
    assert "bounded sensitivity" in words
    exact = Event(0.0, 0.1, 4)
    guard("north", {"rows/a": VALUE}, {"rows/a": Released(exact, np.inf, (2, 3))}, (exact,))


def test_declarations_hold_for_one_upload(tmp_path: Path) -> None:
    """A second upload of the same arrays, for which nothing was charged again, stays inside."""
    lab = Lab(configured(), tmp_path)
    site = lab.site(patients(9))
    arrays = lab.work(site).arrays
    with pytest.raises(PrivacyError, match="declared"):
        site.guard(arrays)


def test_a_private_site_has_no_exact_signals_to_give(tmp_path: Path) -> None:
    """The first of two exchanges would send them: nothing is declared for it."""
    lab = Lab(configured(), tmp_path)
    site = lab.site(patients(9))
    with pytest.raises(PrivacyError):
        site.guard(wire.pack_signals("train", site.signals(lab.bench, lab.download)))
    exact = Site.signals(site, lab.bench, lab.download)
    with pytest.raises(PrivacyError, match="got 3 that do not match"):
        site.guard(wire.pack_signals("train", exact))


def test_a_survey_says_nothing(tmp_path: Path) -> None:
    for records in (patients(9), patients(0)):
        site = Lab(configured(), tmp_path).site(records)
        assert wire.pack_survey(site.survey) == {}


def test_the_charge_comes_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(configured(), tmp_path)
    site = lab.site(patients(9))

    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("fedfair.privacy.site.train_privately", fail)
    with pytest.raises(ValueError, match="^$"):
        lab.work(site)
    assert set(site._ledger.events()) == {Event(2.0, 1.0, 1), Event(5.0, 1.0, 1)}


@pytest.mark.parametrize(
    "error", [PrivacyError("a"), PrivacyBudgetExhausted("b"), ConfigError("c"), RunError("d")]
)
def test_refusals_by_public_settings_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, Discreet("north"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, ZeroDivisionError])
def test_of_other_errors_the_type_alone_passes(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(RunError) as caught, Discreet("north"):
        raise kind("cholesterol 412")
    assert kind.__name__ in str(caught.value)
    assert "412" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    # The hospital's own log has it.
    assert "412" in caplog.text


def test_an_interrupt_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), Discreet("north"):
        raise KeyboardInterrupt
