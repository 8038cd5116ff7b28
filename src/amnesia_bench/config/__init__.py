"""YAML files and overrides in, frozen pydantic objects out."""
