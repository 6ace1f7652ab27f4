"""Measurements: each prints a table and writes JSON, from which the tables and plots of README.md are made."""
