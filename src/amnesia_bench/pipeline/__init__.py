"""Experiments as graphs of stages: planning, scheduling, status."""
