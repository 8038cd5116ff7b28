"""lm-evaluation-harness (0.4.13) over our engines: its tasks, its prompts, its scoring.

`model` holds the LM class, `niah_task` the official NIAH tasks with our prompts in place of their
generator, `retrieval_tasks` what Appendix M ranks layers by.

`python -m amnesia_bench.lm_eval_bridge` is lm-eval's own command line with the model
`amnesia` in it: lm-eval 0.4.13 looks for models in its own table (`lm_eval.models.MODEL_MAPPING`)
only, and offers no entry point through which an installed package could add one. Task files
below `--include_path` are executed after the model was looked up; only those given by their own
path (`--tasks FILE.yaml`) are before it, a side effect that nothing here is built on.
"""
