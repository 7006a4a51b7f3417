"""Labeled images: the data sets known by name, folders, and the one way to stream any of them."""
