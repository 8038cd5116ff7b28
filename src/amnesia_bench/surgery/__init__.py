"""Plan, apply and verify QK-Restore and its variants on checkpoint folders."""
