"""The OCT volume: retinal layers with sub-pixel edges, the cup's hollow, vessel shadows and speckle."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fedfair.data.phantom.anatomy import FIELD, Eye, cup_radius, disc_radius, thickness_map, vessels
from fedfair.data.phantom.devices import Bytes, Device, Pixels, axis, grey, speckle

DEPTH = 2000.0
"""What is imaged in depth, um."""

# Thickness (um) and reflectance of what lies below the RNFL outside the disc.
_LAYERS = ((75.0, 0.46), (70.0, 0.28), (100.0, 0.12), (28.0, 1.8), (220.0, 0.60))
_SCLERA = 0.25
_VITREOUS = 0.003
_FADES = 600.0  # um of tissue over which the light falls to 1/e
_COMPRESSION = 15.0


def oct_volume(
    eye: Eye,
    signal: float,
    contrast: float,
    device: Device,
    size: int,
    slices: int,
    rng: np.random.Generator,
) -> Bytes:
    """Return the volume of an eye.

    Parameters
    ----------
    eye : Eye
        As the volume shows it.
    signal : float
        Strength of the signal above the noise floor, 1 for a good scan.
    contrast : float
        Visibility of the RNFL: its reflectance is 0.46 + 0.32 times this, that of the layer below is 0.46.
    device : Device
        That takes it.
    size : int
        Pixels across 6 mm, and over 2 mm in depth.
    slices : int
        B-scans, over the central 80 % of the field, from superior to inferior.
    rng : np.random.Generator
        Of the position and the speckle.

    Returns
    -------
    Bytes
        [slices, size, size]: B-scan, depth from the vitreous on, and from temporal to nasal.
    """
    shift = rng.normal(0, 0.12, 2).tolist()
    across = -axis(size)[None, :] - shift[0]
    up = -axis(slices, 0.8 * FIELD)[:, None] - shift[1]
    light = _layers(eye, across, up, contrast, device, size, rng)
    light *= signal * speckle(rng, device.looks, light.shape)
    light += device.noise * 0.5 * speckle(rng, 1.0, light.shape)
    return grey(np.log1p(_COMPRESSION * light) / math.log1p(_COMPRESSION))


def _layers(
    eye: Eye,
    across: Pixels,
    up: Pixels,
    contrast: float,
    device: Device,
    size: int,
    rng: np.random.Generator,
) -> Pixels:
    """Return the reflectance [slices, depth, width], each pixel its mean over the layers that it holds."""
    pixel = DEPTH / size
    depth = ((np.arange(size, dtype=np.float32) + 0.5) * pixel)[:, None]
    shadow = 0.55 * vessels(eye, across, up)[:, None].astype(np.float32)
    reflectance = np.full((up.size, size, across.size), _VITREOUS, dtype=np.float32)
    before = _VITREOUS
    for number, (surface, after) in enumerate(_surfaces(eye, across, up, contrast, device, rng)):
        below = depth - surface[:, None].astype(np.float32)
        below *= 1 / pixel
        if number == 0:
            lit = np.exp(np.minimum(-below, 0) * (pixel / _FADES))
        below += 0.5
        np.clip(below, 0, 1, out=below)
        if number == 1:
            lit *= 1 - shadow * below
        below *= after - before
        reflectance += below
        before = after
    reflectance *= lit
    return reflectance


def _surfaces(
    eye: Eye, across: Pixels, up: Pixels, contrast: float, device: Device, rng: np.random.Generator
) -> Iterator[tuple[Pixels, float]]:
    """Yield each surface's depth (um) [slices, width] from the vitreous on, and the reflectance below it."""
    outside = _smooth((disc_radius(eye, across, up) - 0.9) / 0.25)
    slope = max(0.35, 1 / eye.cdr - 0.6)
    pit = (1 - outside) * (1 - _smooth((cup_radius(eye, across, up) - 0.5) / slope))
    fibres = device.rnfl * thickness_map(eye, across, up)
    over = sum(thickness for thickness, _ in _LAYERS[:3])
    surface = _base(across, up, rng) - fibres - 200 - (over - 200) * outside + (260 + 380 * eye.cdr) * pit
    yield surface, 0.46 + 0.32 * contrast
    surface = surface + fibres * (1 - 0.8 * pit)
    for thickness, reflectance in _LAYERS[:-1]:
        yield surface, reflectance
        surface = surface + thickness * outside
    yield surface, _LAYERS[-1][1]
    yield surface + _LAYERS[-1][0] + 150 * (1 - outside), _SCLERA


def _base(across: Pixels, up: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the depth (um) of the front of the pigment epithelium: tilted and curved."""
    tilt = rng.normal(0, 22, 2).tolist()
    level, curve = 1000 + 60 * rng.standard_normal(), 7 + 2 * rng.standard_normal()
    base: Pixels = level + tilt[0] * across + tilt[1] * up - curve * (across**2 + up**2)
    return base


def _smooth(share: Pixels) -> Pixels:
    """Return a share clipped to [0, 1] with level ends, 3 s^2 - 2 s^3."""
    inner: Pixels = np.clip(share, 0, 1)
    inner *= inner * (3 - 2 * inner)
    return inner
