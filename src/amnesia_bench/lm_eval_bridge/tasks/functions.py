"""The functions to which the task files in this folder refer with `!function`."""

from amnesia_bench.lm_eval_bridge.reasoning_tasks import functions_of

math500_text, math500_results = functions_of("math500")
gsm8k_text, gsm8k_results = functions_of("gsm8k")
aime24_text, aime24_results = functions_of("aime24")
