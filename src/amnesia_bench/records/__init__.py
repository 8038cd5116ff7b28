"""Frozen records: whatever crosses a file boundary. Standard library and pydantic only."""
