"""Long-range recall: needle prompts, how a checkpoint answers them, and the regression gate."""
