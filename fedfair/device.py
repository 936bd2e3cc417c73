"""The device that a process trains on, and the one generator there that is global."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fedfair.errors import ConfigError


@contextlib.contextmanager
def dropout_seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generator, the only one dropout knows, and put it back afterwards."""
    on_gpu = device.type == "cuda"
    # On a CPU torch.manual_seed would also queue the seed, with a formatted stack, for each kind of
    # accelerator that is not there: a tenth of a small site's round.
    seed_all = torch.manual_seed if on_gpu else torch.default_generator.manual_seed
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        seed_all(seed)
        yield


def choose_device(name: str) -> torch.device:
    """Return the device `name`, or the first GPU if there is one for ``auto``.

    Raises
    ------
    ConfigError
        If torch knows no such device or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"`training.device` must be auto, cpu or a device of this machine, got {name!r}"
        ) from error


def check_mixed_precision(device: torch.device) -> None:
    """Refuse a GPU that computes no products in bfloat16.

    Raises
    ------
    ConfigError
        If it is one.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            "`training.mixed_precision` must be false on a GPU without bfloat16 (before Ampere), got true"
        )
