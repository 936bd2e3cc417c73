"""The eye: disc and cup, retinal nerve fibre layer (RNFL) and vessels, in millimetres and micrometres.

The disc's centre is the origin, x runs to the temporal side, y to the superior one. All eyes are drawn as
right eyes of 6 x 6 mm around the disc.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

FIELD = 6.0
"""Width and height of what is imaged, mm."""

_CIRCLE = 1.73  # mm, radius of the circle on which RNFL is reported
_ANGLES = np.radians(np.arange(0.5, 360))
# Of two vessels in each quadrant: B and a of the curve below, and width (mm).
_ARCADES = (
    (2.9, 2.5, 0.07),
    (3.6, 2.1, 0.05),
    (3.0, -2.6, 0.075),
    (3.4, -2.15, 0.055),
    (-2.6, 2.0, 0.05),
    (-1.5, 2.6, 0.04),
    (-2.8, -1.9, 0.05),
    (-1.3, -2.7, 0.04),
)
_POWER = 1.6 / 0.75
_TRUNK = 0.18  # mm, how far to the nasal side they rise


def remaining(damage: Floats | float) -> Floats:
    """Return the share of fibres left, rho = 10^(-d/10), for damage d >= 0 in dB.

    RNFL lost against field loss: Hood and Kardon, Progress in Retinal and Eye Research 26, 2007.
    """
    share: Floats = 10.0 ** (-np.asarray(damage) / 10)
    return share


def vertical_diameter(area: Floats | float) -> Floats:
    """Return the vertical diameter (mm) of a disc of this area (mm^2), 4 % longer than a circle's."""
    diameter: Floats = 1.04 * np.sqrt(4 * np.asarray(area) / math.pi)
    return diameter


def physiologic_cdr(area: Floats, deviation: Floats) -> Floats:
    """Return the healthy vertical cup-to-disc ratio: larger discs have larger cups.

    CDR0 = (1.194 DD - 1.31) / DD + deviation, within [0.05, 0.85] (Garway-Heath et al., Br J Ophthalmol 82,
    1998).
    """
    diameter = vertical_diameter(area)
    return np.clip((1.194 * diameter - 1.31) / diameter + deviation, 0.05, 0.85)


def cup_to_disc(physiologic: Floats | float, damage: Floats | float, exponent: float = 0.6) -> Floats:
    """Return the vertical cup-to-disc ratio, CDR = 1 - (1 - CDR0) rho^0.6; the exponent is assumed."""
    ratio: Floats = 1 - (1 - physiologic) * remaining(damage) ** exponent
    return ratio


def mean_thickness(healthy: Floats, damage: Floats, floor: float) -> Floats:
    """Return the mean RNFL thickness (um), b + (N - b) rho (Hood and Kardon, 2007)."""
    thickness: Floats = floor + (healthy - floor) * remaining(damage)
    return thickness


class Eye(NamedTuple):
    """One eye as one modality sees it.

    Attributes
    ----------
    area, physiologic : float
        Disc area (mm^2) and healthy cup-to-disc ratio.
    healthy, floor : float
        Healthy mean RNFL thickness and what is left without fibres (um).
    damage : float
        dB, as the modality shows it.
    side, focality : float
        +1 superior or -1 inferior, and how much of the loss is there, in [0, 1].
    arcade : tuple[float, ...]
        Four factors on the height of the vessels of each quadrant.
    """

    area: float
    physiologic: float
    healthy: float
    floor: float
    damage: float
    side: float
    focality: float
    arcade: tuple[float, ...]

    @property
    def cdr(self) -> float:
        """Vertical cup-to-disc ratio."""
        return float(cup_to_disc(self.physiologic, self.damage))

    @property
    def disc(self) -> tuple[float, float]:
        """Horizontal and vertical radius of the disc (mm)."""
        vertical = float(vertical_diameter(self.area)) / 2
        return vertical / 1.04**2, vertical

    @property
    def cup(self) -> tuple[float, float, float]:
        """Horizontal and vertical radius of the cup, and how far its centre is moved up (mm)."""
        across, along = self.disc
        flat = float(cup_to_disc(self.physiologic, self.damage, 0.6 * 0.85))
        lost = 1 - float(remaining(self.damage))
        return (
            across * flat,
            along * self.cdr,
            self.side * 0.5 * self.focality * lost * (1 - self.cdr) * along,
        )


def disc_radius(eye: Eye, x: Floats, y: Floats) -> Floats:
    """Return how far a point is from the centre in units of the disc's radius in its direction."""
    across, along = eye.disc
    radius: Floats = np.hypot(x / across, y / along)
    return radius


def cup_radius(eye: Eye, x: Floats, y: Floats) -> Floats:
    """Return how far a point is from the cup's centre in units of its radius in that direction."""
    across, along, moved = eye.cup
    radius: Floats = np.hypot(x / across, (y - moved) / along)
    return radius


def _humps(angle: Floats) -> Floats:
    """Return the healthy profile over the angle (0 temporal), two humps at 72 degrees; not scaled."""
    up, down = (np.abs(_wrapped(angle - sign * math.radians(72))) for sign in (1, -1))
    profile: Floats = 0.12 + _bell(up, math.radians(38)) + _bell(down, math.radians(38))
    return profile


def _wrapped(angle: Floats) -> Floats:
    turned: Floats = (angle + math.pi) % (2 * math.pi) - math.pi
    return turned


def _bell(distance: Floats, width: float) -> Floats:
    height: Floats = np.exp(-0.5 * (distance / width) ** 2)
    return height


_PROFILE = _humps(_ANGLES) / _humps(_ANGLES).mean()


def circle_thickness(eye: Eye) -> Floats:
    """Return the RNFL thickness (um) [360] on the reporting circle, its mean being `mean_thickness`.

    The local loss follows the same law with the damage shared out by focality between the whole circle and
    an arcuate sector on the eye's side.
    """
    sector = _bell(np.abs(_wrapped(_ANGLES - eye.side * math.radians(72))), math.radians(30))
    share = 1 - eye.focality + eye.focality * sector / (_PROFILE * sector).mean()
    # Only the ratios count, and the least share keeps a fibre however large the damage.
    left = _PROFILE * remaining(eye.damage * (share - share.min()))
    left *= float(remaining(eye.damage)) / left.mean()
    thickness: Floats = eye.floor + (eye.healthy - eye.floor) * left
    return thickness


def thickness_map(eye: Eye, x: Floats, y: Floats) -> Floats:
    """Return the RNFL thickness (um) outside the disc; inside, what it is at the disc's edge.

    From the edge it grows and then falls off with exp(-r / 2.6 mm); it is the profile's on the circle.
    """
    across, along = eye.disc
    edge = math.sqrt(across * along)
    radius = np.maximum(np.hypot(x, y), edge)
    decay = _radial(radius, edge) / _radial(_CIRCLE, edge)
    degree = np.degrees(np.arctan2(y, x))
    profile = np.interp(degree, np.degrees(_ANGLES), circle_thickness(eye), period=360)
    thickness: Floats = profile * decay
    return thickness


def _radial(radius: Floats | float, edge: float) -> Floats:
    height: Floats = (1 - 0.5 * np.exp(-(radius - edge) / 0.3)) * np.exp(-radius / 2.6)
    return height


def vessels(eye: Eye, x: Floats, y: Floats) -> Floats:
    """Return how much of a vessel each point holds, in [0, 1].

    Vessels leave the disc on its nasal side. One is x = B (y / a)^2.13, a closed form of the curve
    (B t^1.6, a t^0.75); the distance to it is taken along x and turned by the slope.
    """
    x = x + _TRUNK
    holds: Floats = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for number, (reach, height, width) in enumerate(_ARCADES):
        along = y / (height * eye.arcade[number // 2])
        ahead = np.clip(along, 0, None)
        curve = reach * ahead**_POWER + 0.05 * np.sin(6 * y + number)
        slope = _POWER * reach / height * ahead ** (_POWER - 1)
        distance = (x - curve) / np.sqrt(1 + slope**2)
        own = _bell(distance, width) * np.clip(along * 8, 0, 1)
        np.maximum(holds, own, out=holds)
    holds *= np.clip(disc_radius(eye, x, y) / 0.9, 0.35, 1)
    return holds
