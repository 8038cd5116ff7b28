"""lm-evaluation-harness (0.4.13) with our engines: its tasks, its prompts and its scoring.

`model` contains the LM class, `niah_task` the official NIAH tasks with our prompts instead of their
generator, and `retrieval_tasks` the tasks of the layer ranking of Appendix M.

`python -m amnesia_bench.lm_eval_bridge` is lm-eval's command line with the additional model
`amnesia`. lm-eval 0.4.13 has no plugin entry point for models: it looks them up only in its own
table (`lm_eval.models.MODEL_MAPPING`). Task files below `--include_path` are executed after that
lookup. Task files that are passed by path (`--tasks FILE.yaml`) are executed before it, but we do
not rely on this side effect.
"""
