"""Benchmarks: what fedfair costs beside the plainest code that does the same; they assert no times."""
