"""Dataclasses for file contents; they import only the standard library and pydantic."""
