"""The steps of gpu_acceptance.py, in order."""

from collections.abc import Callable

from acceptance import inference, kernels, training
from acceptance.setup import Setup, Values

STEPS: dict[str, Callable[[Setup, Values], None]] = {
    "1": kernels.versions_and_rates,
    "2": kernels.lightning_kernels,
    "3": kernels.golden_and_caches,
    "4d": training.dry_run_of_sft_step,
    "4": training.sft_step,
    "4c": training.compiled_sft_step,
    "4t": training.sft_step_of_trainer,
    "5": training.repeat_and_resume,
    "6": inference.long_prefill,
    "7": inference.decode,
    "8": inference.out_of_memory,
}
