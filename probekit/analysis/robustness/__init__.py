"""Accuracy and activations under corruptions and attacks."""
