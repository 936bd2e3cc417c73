"""Experiments: one configuration, its methods, seeds and engine, and the results they leave."""

import os

# Before Flower is imported, here or in a worker process.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
