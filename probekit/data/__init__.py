"""Labeled images: named data sets, folders, and streaming of any image data."""
