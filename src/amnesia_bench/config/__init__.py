"""Load YAML configs, with command-line overrides, into frozen pydantic objects."""
