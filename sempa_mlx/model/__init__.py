"""Models: loading, adapters, scoring."""
