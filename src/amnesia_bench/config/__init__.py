"""Hydra groups in, frozen pydantic objects out."""
