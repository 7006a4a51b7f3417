"""Results for people: in the terminal, as a page, as the dossier of a unit."""
