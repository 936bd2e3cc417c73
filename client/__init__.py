"""The client app: trains at one site and sends sums over its records."""
