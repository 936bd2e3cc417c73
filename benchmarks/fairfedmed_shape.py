"""A federation of the size of FairFedMed on synthetic patients: three sites, ViT with low-rank adapters.

``python -m benchmarks.fairfedmed_shape`` plays 3 sites x 4,000 patients at 224 px with ViT-B/16 (random
weights) for two rounds, on the first GPU if there is one; every size is an option. The images are painted
once and kept (20 GB, in `XDG_CACHE_HOME` or `~/.cache`). Nobody is behind a patient; scores mean nothing.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks import _table
from benchmarks._run import run
from benchmarks._timing import peak_memory
from fedfair.config import parse
from fedfair.data import open_dataset

SITES = 3
TEST_SHARE = 0.2


def main() -> None:
    """Play the rounds and print what they took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairfedmed_shape", description=__doc__)
    sizes = {"patients": 4000, "size": 224, "slices": 32, "rounds": 2, "batch": 8}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    vit = {"width": 768, "layers": 12, "heads": 12, "patch": 16, "rank": 8}
    for name, default in vit.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"of the ViT, default {default}")
    parser.add_argument("--full-precision", action="store_true", help="no bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = experiment(options)
    print(_table.machine(), device_name(), sep="\n", flush=True)
    print(f"painting or opening: {opened(plain):.1f} s", flush=True)
    times = [time.perf_counter()]

    def on_round() -> None:
        times.append(time.perf_counter())
        print(line(len(times) - 1, times[-1] - times[-2], options), flush=True)

    run(plain, SITES, on_round)
    print(memory())


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration as plain data."""
    network = {
        "hidden_size": options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "intermediate_size": 4 * options.width,
        "image_size": options.size,
        "patch_size": options.patch,
    }
    encoder = {"name": "vit", "config": network, "tune": "lora", "rank": options.rank}
    images = {name: getattr(options, name) for name in ("patients", "size", "slices")}
    return {
        "name": "fairfedmed-shape",
        "rounds": options.rounds,
        "data": {
            "name": "phantom",
            "attribute": "race",
            "test_fraction": TEST_SHARE,
            "options": {"preset": "fairfedmed3", **images, "cache": True},
        },
        "model": {
            "options": {
                "embedding_dim": 64,
                "fusion": "attention",
                "encoders": {"slo": encoder, "oct": encoder},
            }
        },
        "method": {"name": "fedavg"},
        "training": {
            "mode": "weights",
            "batch_size": options.batch,
            "chunk_size": 2 * options.batch,
            "mixed_precision": not options.full_precision,
        },
    }


def opened(plain: dict[str, Any]) -> float:
    """Return the seconds in which all sites' images were painted, or found."""
    config = parse(plain)
    start = time.perf_counter()
    adapter = open_dataset(config.data.name, None, config.data.options, config.seed)
    for site in adapter.schema.sites:
        adapter.load(site)
    return time.perf_counter() - start


def line(number: int, seconds: float, options: argparse.Namespace) -> str:
    """Return what a round took: all images are measured, those of the training records are trained on."""
    if number > options.rounds:
        return f"final evaluation: {seconds:.1f} s"
    images = SITES * options.patients * (1 + options.slices)
    what = "start and round" if number == 1 else "round"
    return (
        f"{what} {number}: {seconds:.1f} s, {images / seconds:.0f} images/s measured and "
        f"{(1 - TEST_SHARE) * images / seconds:.0f} images/s trained on"
    )


def device_name() -> str:
    """Return the device that a run takes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def memory() -> str:
    """Return the peaks of memory."""
    own = f"resident at most {peak_memory() / 2**20:.0f} MiB, mapped images included"
    if not torch.cuda.is_available():
        return own
    return f"{own}; GPU at most {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
