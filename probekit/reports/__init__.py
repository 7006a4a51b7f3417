"""Reports of results: terminal tables, HTML pages, and the dossier of a unit."""
