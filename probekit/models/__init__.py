"""Models: image models as values, loading them by name, and the architectures of the papers."""
