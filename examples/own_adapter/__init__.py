"""A data set and a model written in Python: images and a table of synthetic drawings."""
