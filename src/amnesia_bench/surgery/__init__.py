"""QK-Restore and its variants: plan, edit and prove, on checkpoint folders."""
