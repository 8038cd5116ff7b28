"""Plan, schedule and monitor experiments, which are graphs of stages."""
