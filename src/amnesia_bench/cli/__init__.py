"""The `amnesia` command."""
