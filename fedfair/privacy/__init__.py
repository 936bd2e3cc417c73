"""Differential privacy: what a site adds before anything leaves it, and the account of what it spent."""
