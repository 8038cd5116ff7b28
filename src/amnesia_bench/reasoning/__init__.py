"""Run reasoning benchmarks: generate answers, score them, and compare two methods."""
