"""Processes, progress, memory and random numbers."""
