"""Run the benchmarks: ``python -m benchmarks [--write] [NAME ...]``."""

from __future__ import annotations

import argparse
import importlib

import torch

from benchmarks import _table

# In the order of docs/performance.md.
NAMES = ("engine", "flower", "group_gradients", "round_overhead", "aggregation", "es_auc_interval")


def main() -> None:
    """Run all benchmarks or the named ones and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--write", action="store_true", help="rewrite the tables in docs/performance.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    torch.set_num_threads(1)
    print(_table.machine(), "\n", sep="")
    for name in arguments.names or NAMES:
        for table in importlib.import_module(f"benchmarks.{name}").tables():
            print(table.name, table, sep="\n", end="\n\n", flush=True)
            if arguments.write:
                _table.write(table)


if __name__ == "__main__":
    main()
