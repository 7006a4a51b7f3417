"""Passes of a model over data: analyses, ablations, Jacobians, robustness."""
