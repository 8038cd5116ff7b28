"""Confidence intervals, exact tests and resampling of measured scores."""
