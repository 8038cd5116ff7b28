"""Long-range recall: needle prompts, a checkpoint's recall on them, and the regression gate."""
