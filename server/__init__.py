"""The server app: sums the sites' updates, chooses the coefficients and moves the global model."""
