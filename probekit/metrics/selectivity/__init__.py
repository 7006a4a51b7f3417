"""Class selectivity: the index, its confidence intervals and control metrics."""
