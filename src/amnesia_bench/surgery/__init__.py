"""QK-Restore and its variants on checkpoint folders: plan, edit and verify."""
