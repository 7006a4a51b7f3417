"""Mergeable sufficient statistics, updated per batch, whose size is independent of the sample count."""
