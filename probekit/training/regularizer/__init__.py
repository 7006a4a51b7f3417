"""The class-selectivity regularizer."""
