"""Reasoning benchmarks: generate answers, score them, compare two models."""
