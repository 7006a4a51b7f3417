"""Mergeable sufficient statistics, fed batch by batch and independent of the number of samples."""
