"""Metrics: pure functions from statistics to values per unit or per layer, and their registry."""
