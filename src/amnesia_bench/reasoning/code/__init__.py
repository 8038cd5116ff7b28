"""LiveCodeBench: problems, prompts, and verdicts on programs run in a sandbox."""
