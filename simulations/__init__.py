"""Experiments: one configuration, its methods, seeds and engine, and the results they leave."""
