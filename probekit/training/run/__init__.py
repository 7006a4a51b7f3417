"""A single training run: recipe, data, loop and folder."""
