"""Recording activations: which layers there are, where their units lie, and the one hook mechanism."""
