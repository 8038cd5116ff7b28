"""Frozen records of all files that are written or read. Standard library and pydantic only."""
