"""Training with raised or lowered class selectivity."""
