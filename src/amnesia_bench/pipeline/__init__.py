"""The graph of stages that an experiment needs, and how it is run: once each, on disk."""
