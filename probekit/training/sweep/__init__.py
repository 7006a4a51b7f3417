"""Sweeps over alpha and seeds, and their comparison."""
