"""LiveCodeBench: its problems and prompts, and verdicts on programs that run in a sandbox."""
