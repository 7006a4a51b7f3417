"""Results as files: trees, provenance, labels."""
