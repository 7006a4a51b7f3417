"""What changes an image without changing its label: corruptions and attacks."""
