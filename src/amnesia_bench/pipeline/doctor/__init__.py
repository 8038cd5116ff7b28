"""Examine what a machine can do, and how to repair what is broken."""
