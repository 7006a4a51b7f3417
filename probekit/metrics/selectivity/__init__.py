"""Class selectivity: the index, its intervals and controls."""
