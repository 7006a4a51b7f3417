"""Pure functions from statistics to labeled numbers, per unit or per layer, and their registry."""
