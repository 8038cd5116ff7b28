"""The command-line interface `amnesia`."""
