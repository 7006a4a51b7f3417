"""One training run: recipe, data, loop and folder."""
