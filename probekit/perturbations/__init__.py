"""Perturbations that change an image but not its label: corruptions and attacks."""
