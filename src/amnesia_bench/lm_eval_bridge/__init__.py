"""Run tasks of lm-evaluation-harness 0.4.13, with its prompts and scoring, on our engines.

`model` contains the LM class, `niah_task` the official NIAH tasks with stored prompts instead of
their generator, `retrieval_tasks` the tasks for the layer ranking of Appendix M, and
`commonsense_tasks` those with which layers are selected. Our engines only generate text, so
lm-eval's own model class computes the log-likelihoods of commonsense tasks.

`python -m amnesia_bench.lm_eval_bridge` is lm-eval's command line with the additional model
`amnesia`. lm-eval 0.4.13 has no plugin entry point for models: it looks them up only in its own
table (`lm_eval.models.MODEL_MAPPING`). Code in task files below `--include_path` is executed after
that lookup, too late to register a model. Code in task files that are passed by path
(`--tasks FILE.yaml`) is executed before it, but we do not rely on this side effect.
"""
