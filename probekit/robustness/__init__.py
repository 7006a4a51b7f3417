"""What changes an input without changing its label: corruptions and attacks."""
