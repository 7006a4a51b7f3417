"""Training with class selectivity turned up or down."""
