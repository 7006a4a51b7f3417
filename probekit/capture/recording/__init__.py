"""Recordings: activations of chosen layers, stored sample by sample."""
