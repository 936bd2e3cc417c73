"""Run the benchmarks: ``python -m benchmarks [--write] [NAME ...]``."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys

import torch

from benchmarks import _table

# In the order of docs/performance.md; the last one is in docs/phantom.md.
NAMES = (
    "engine",
    "flower",
    "group_gradients",
    "round_overhead",
    "aggregation",
    "es_auc_interval",
    "private_step",
    "phantom",
)
# Minutes, gigabytes, nginx or the extra `pretrained`: only when named.
LARGE = ("large_models", "pipeline", "frozen")

# Steps that allocate megabytes: whether glibc returns them to the system after each step, to page them in
# again in the next, depends on what else lies in memory and changes a step by a quarter. Here it keeps them.
STEADY = ("group_gradients", "round_overhead", "private_step")
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}


def main() -> None:
    """Run all benchmarks or the named ones, each in a process of its own, and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: these), {', '.join(LARGE)}"
    )
    parser.add_argument("--write", action="store_true", help="rewrite the tables in docs/")
    parser.add_argument("--here", action="store_true", help="run in this process, in whatever state it is")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*NAMES, *LARGE}:
        parser.error(
            f"no benchmark is called {', '.join(sorted(unknown))}; known are {', '.join((*NAMES, *LARGE))}"
        )
    for name in arguments.names or NAMES:
        if arguments.here:
            run(name, arguments.write)
        else:
            command = [sys.executable, "-m", "benchmarks", "--here", name]
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | (KEEP_MEMORY if name in STEADY else {})
            subprocess.run(command + ["--write"] * arguments.write, env=environment, check=True)


def run(name: str, write: bool) -> None:
    """Run one benchmark here."""
    torch.set_num_threads(1)
    print(name, _table.machine(), sep=": ", end="\n\n")
    for table in importlib.import_module(f"benchmarks.{name}").tables():
        print(table, end="\n\n", flush=True)
        if write:
            _table.write(table)


if __name__ == "__main__":
    main()
