"""Results for people: in the terminal, as figures, as a page."""
