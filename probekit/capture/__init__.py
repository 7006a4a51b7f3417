"""Record activations: find layers, determine their unit axes, and hook forward passes."""
