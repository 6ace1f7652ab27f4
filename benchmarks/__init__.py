"""Measurements: each prints a table, and writes the JSON from which README's tables and plots are made."""
