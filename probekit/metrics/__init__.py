"""Pure functions from statistics to labelled numbers, per unit or per layer, and their registry."""
