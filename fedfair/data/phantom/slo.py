"""The fundus image (scanning laser ophthalmoscopy, SLO): retina, nerve fibre sheen, disc, cup and vessels."""

from __future__ import annotations

import numpy as np

from fedfair.data.phantom.anatomy import Eye, cup_radius, disc_radius, thickness_map, vessels
from fedfair.data.phantom.devices import Bytes, Device, Pixels, axis, blurring, grey

_COARSE = 9  # knots of the choroid's slow texture


def slo_image(
    eye: Eye,
    pigment: float,
    clarity: float,
    contrast: float,
    device: Device,
    size: int,
    rng: np.random.Generator,
) -> Bytes:
    """Return the image of an eye.

    Parameters
    ----------
    eye : Eye
        As the image shows it.
    pigment, clarity : float
        Brightness of the fundus, and clearness of the media, 1 for clear.
    contrast : float
        Visibility of the cup and of the nerve fibres' sheen.
    device : Device
        That takes it.
    size : int
        Pixels across 6 mm.
    rng : np.random.Generator
        Of the noise.

    Returns
    -------
    Bytes
        [size, size]; the first row is superior, the first column temporal.
    """
    shift = rng.normal(0, 0.12, 2).tolist()
    across = -axis(size)[None, :] - shift[0]
    up = -axis(size)[:, None] - shift[1]
    light = _retina(eye, across, up, pigment, contrast, rng)
    disc = _inside(disc_radius(eye, across, up), eye.disc[1])
    cup = _inside(cup_radius(eye, across, up), eye.cup[1])
    light += disc * (0.55 * pigment + 0.42 * contrast * cup - light)
    light *= 1 - 0.45 * vessels(eye, across, up)
    light += (1 - clarity) * (light.mean() - light)
    matrix = blurring(size, device.blur)
    light = matrix @ (device.gain * light + device.offset) @ matrix.T
    light = np.clip(light, 0, None) ** device.gamma
    return grey(light + device.noise * rng.standard_normal((size, size), dtype=np.float32))


def _retina(
    eye: Eye, across: Pixels, up: Pixels, pigment: float, contrast: float, rng: np.random.Generator
) -> Pixels:
    """Return the light from outside the disc: darker to the edges, brighter where nerve fibres are thick."""
    size = across.shape[1]
    knots = rng.normal(0, 1, (_COARSE, _COARSE)).astype(np.float32)
    smooth = blurring(size, 0.5)[:, :: max(1, size // _COARSE)][:, :_COARSE]
    streaks = 0.2 * np.interp(np.arctan2(up, across), *_streaks(rng), period=2 * np.pi)
    sheen = np.clip(thickness_map(eye, across, up) / 140, 0, 1.3) * (1 + streaks)
    light = pigment * (1 - 0.02 * (across**2 + up**2)) + 0.05 * smooth @ knots @ smooth.T
    retina: Pixels = (light + 0.16 * contrast * sheen).astype(np.float32)
    return retina


def _streaks(rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Return angles, and how bright the fibre bundle at each is."""
    angles = np.linspace(-np.pi, np.pi, 90, endpoint=False, dtype=np.float32)
    return angles, rng.standard_normal(90, dtype=np.float32)


def _inside(radius: Pixels, scale: float) -> Pixels:
    """Return 1 inside, 0 outside, and a ramp of 0.12 mm at the edge."""
    inside: Pixels = np.clip((1 - radius) * scale / 0.12 + 0.5, 0, 1)
    return inside
