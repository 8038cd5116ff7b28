"""Long-range recall: build needle prompts, measure recall on them, and gate regressions."""
