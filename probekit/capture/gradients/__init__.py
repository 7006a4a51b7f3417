"""Gradients of units with respect to the input."""
