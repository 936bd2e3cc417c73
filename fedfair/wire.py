"""The one place for names on the wire: typed messages to and from {name: array}.

Free of Flower, so that server and client wrap the same dictionaries into records and cannot
drift apart. Names are ``part/field``; a dictionary is sorted into a message by its owner.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedfair.coefficients import Coefficients, FairnessTerm, LossTerms
from fedfair.data.moments import FeatureSums
from fedfair.errors import InconsistentUpdates
from fedfair.local import SiteUpdate
from fedfair.signals import Signals, Variance

Arrays = dict[str, NDArray[np.generic]]
DTYPES = ("float32", "float64")
WORDS = ("uint32", "uint64")  # of masked sums
MOST_AXES, MOST_VALUES = 8, 2**40
"""Of any array; beyond them NumPy itself may fail."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Download:
    """What the server sends for one round.

    Attributes
    ----------
    model : Mapping[str, NDArray]
        One vector per block.
    moments : Mapping[str, NDArray]
        [2, columns] pooled mean and standard deviation per table modality.
    coefficients : Coefficients
        To train along.
    terms : LossTerms
        Extra loss terms to train with.
    """

    model: Mapping[str, NDArray[np.floating]]
    moments: Mapping[str, Floats]
    coefficients: Coefficients
    terms: LossTerms = field(default_factory=LossTerms)


@dataclass(frozen=True)
class Survey:
    """What a site tells before the first round; sums over its records.

    Attributes
    ----------
    features : FeatureSums
        Of the training records, to standardise with pooled moments.
    train_counts, test_counts : Floats | None
        [H, cells, C] records by head, cell of all attributes and label; None under privacy, where
        a site only says that it is there.
    """

    features: FeatureSums
    train_counts: Floats | None = None
    test_counts: Floats | None = None

    def digest(self) -> str:
        """Return a hash of all sums, which tells whether a site's records are still the same."""
        arrays = [
            *(self.features[name] for name in sorted(self.features)),
            *(counts for counts in (self.train_counts, self.test_counts) if counts is not None),
        ]
        return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]


def to_bytes(array: NDArray[np.generic]) -> bytes:
    """Return an array in NumPy's file format, as `np.save` writes it."""
    return _header(array.dtype.name, array.shape) + array.tobytes()


def from_bytes(
    data: bytes, dtype: str, shape: tuple[int, ...], dtypes: tuple[str, ...] = DTYPES
) -> NDArray[np.floating]:
    """Return the array that `to_bytes` wrote; read-only, since it shares the memory of `data`.

    Parameters
    ----------
    data : bytes
        What `to_bytes` returned. Nothing of it is parsed: it must be of the dtype and shape given.
    dtype : str
        One of `dtypes`.
    shape : tuple[int, ...]
        The array's shape.
    dtypes : tuple[str, ...]
        What is accepted: numbers, or `WORDS`.

    Raises
    ------
    InconsistentUpdates
        If `data` is anything else.
    """
    # The sizes of an array without values are bounded too.
    if len(shape) > MOST_AXES or min(shape, default=0) < 0 or math.prod(n or 1 for n in shape) > MOST_VALUES:
        raise InconsistentUpdates(
            f"an array must have at most {MOST_AXES} axes and 2^40 values, got a shape of {len(shape)} axes"
        )
    if dtype in dtypes:
        header, size = _header(dtype, shape), math.prod(shape) * np.dtype(dtype).itemsize
        if data.startswith(header) and len(data) == len(header) + size:
            return np.frombuffer(data, dtype, offset=len(header)).reshape(shape)
    raise InconsistentUpdates(
        f"an array must be in NumPy's file format, of {dtypes}, got {len(data)} bytes for {dtype} {shape}"
    )


# A run sends few shapes, and sends them often.
@lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    layout = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, layout)
    return file.getvalue()


def pack_download(download: Download) -> Arrays:
    """Return the arrays of a download."""
    arrays: Arrays = {f"model/{name}": value for name, value in download.model.items()}
    arrays |= {f"moments/{name}": value for name, value in download.moments.items()}
    arrays["coefficients/fused"] = download.coefficients.fused
    arrays["coefficients/unimodal"] = download.coefficients.unimodal
    arrays["coefficients/live"] = np.array([float(download.coefficients.live)])
    if download.terms.direction is not None:
        arrays["terms/direction"] = download.terms.direction
    if (fairness := download.terms.fairness) is not None:
        arrays["terms/slopes"] = fairness.slopes
        arrays["terms/histograms"] = fairness.histograms
        arrays["terms/temperature"] = np.array([fairness.temperature])
    return arrays


def unpack_download(arrays: Mapping[str, NDArray[np.generic]]) -> Download:
    """Return the download that `pack_download` packed.

    Raises
    ------
    InconsistentUpdates
        If an array is missing.
    """
    fairness = None
    if "terms/slopes" in arrays:
        fairness = FairnessTerm(
            _get(arrays, "terms/slopes"),
            _get(arrays, "terms/histograms"),
            float(_get(arrays, "terms/temperature")[0]),
        )
    direction = _get(arrays, "terms/direction") if "terms/direction" in arrays else None
    return Download(
        _part(arrays, "model/"),
        {name: value.astype(np.float64) for name, value in _part(arrays, "moments/").items()},
        Coefficients(
            _get(arrays, "coefficients/fused"),
            _get(arrays, "coefficients/unimodal"),
            bool(_get(arrays, "coefficients/live")[0]),
        ),
        LossTerms(direction, fairness),
    )


def pack_signals(prefix: str, signals: Signals) -> Arrays:
    """Return the arrays of signals under ``prefix/``."""
    arrays: Arrays = {
        f"{prefix}/counts": signals.counts,
        f"{prefix}/losses": signals.losses,
        f"{prefix}/histograms": signals.histograms,
    }
    if signals.head_gradients is not None:
        arrays[f"{prefix}/head_gradients"] = signals.head_gradients
    if signals.variance is not None:
        arrays[f"{prefix}/variance"] = np.array(signals.variance)
    return arrays


def unpack_signals(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> Signals:
    """Return the signals under ``prefix/``.

    Raises
    ------
    InconsistentUpdates
        If an array is missing, or `variance` is not one value for each array that it is of.
    """
    gradients, variance = f"{prefix}/head_gradients", f"{prefix}/variance"
    return Signals(
        _get(arrays, f"{prefix}/counts"),
        _get(arrays, f"{prefix}/losses"),
        _get(arrays, f"{prefix}/histograms"),
        _get(arrays, gradients) if gradients in arrays else None,
        _variance(arrays, variance) if variance in arrays else None,
    )


def _variance(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Variance:
    value, wanted = _get(arrays, name), (len(Variance._fields),)
    if value.shape != wanted:
        raise InconsistentUpdates(f"`{name}` must be {wanted}, got {value.shape}")
    return Variance(*value.tolist())


def has_signals(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> bool:
    """Return whether there is any array of signals under ``prefix/``."""
    return any(name.startswith(f"{prefix}/") for name in arrays)


def pack_update(update: SiteUpdate) -> Arrays:
    """Return the arrays of a site's update; its name travels beside them."""
    arrays: Arrays = {f"rows/{key}": value for key, value in update.rows.items()}
    for prefix, signals in (("train", update.train), ("test", update.test)):
        if signals is not None:
            arrays |= pack_signals(prefix, signals)
    return arrays


def unpack_update(site: str, arrays: Mapping[str, NDArray[np.generic]]) -> SiteUpdate:
    """Return the update of `site` that `pack_update` packed."""
    train, test = (
        unpack_signals(prefix, arrays) if has_signals(prefix, arrays) else None
        for prefix in ("train", "test")
    )
    return SiteUpdate(site, _part(arrays, "rows/"), train, test)


def pack_survey(survey: Survey) -> Arrays:
    """Return the arrays of a survey."""
    arrays: Arrays = {f"features/{name}": value for name, value in survey.features.items()}
    for part, counts in (("train", survey.train_counts), ("test", survey.test_counts)):
        if counts is not None:
            arrays[f"{part}/counts"] = counts
    return arrays


def unpack_survey(arrays: Mapping[str, NDArray[np.generic]]) -> Survey:
    """Return the survey that `pack_survey` packed."""
    features = {name: np.asarray(value, np.float64) for name, value in _part(arrays, "features/").items()}
    if not arrays:
        return Survey({})
    return Survey(features, _get(arrays, "train/counts"), _get(arrays, "test/counts"))


def _part(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.floating]]:
    return {
        name[len(prefix) :]: value  # type: ignore[misc]
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def _get(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Floats:
    if name not in arrays:
        raise InconsistentUpdates(f"a message must hold `{name}`, got {sorted(arrays)}")
    return np.array(arrays[name], dtype=np.float64)
