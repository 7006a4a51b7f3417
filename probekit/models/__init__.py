"""Models: image models, loading them by name, and the architectures of the papers."""
