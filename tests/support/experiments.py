"""Which committed experiments are defined for which committed profiles."""

GEMMA = ("gemma", "gemma_smoke")
_OF_GEMMA = ("table1", "table4", "controls", "ladder", "figures")
ONE_GPU = "one_gpu"
_OF_ONE_GPU = ("table1", "table4")
SMOKE_SELECTION = "smoke_selection"  # of the scope tiny


def is_defined(experiment: str, profile: str) -> bool:
    if profile in GEMMA:
        return experiment in _OF_GEMMA
    if profile == ONE_GPU:
        return experiment in _OF_ONE_GPU
    return experiment != "ladder" and (experiment, profile) != ("controls", "paper")
