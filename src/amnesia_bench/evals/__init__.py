"""Recall and reasoning evaluations: prompts, engines that answer them, scores, and the gate."""
