"""NIAH (niah_single_1/2/3): the prompts that lm-evaluation-harness makes, built once, and fast."""

from amnesia_bench.recall.niah.build import NiahBuild, build_cells
from amnesia_bench.recall.niah.cells import NiahCell, open_cells
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, TASKS

__all__ = ["NIAH_SAMPLING", "TASKS", "NiahBuild", "NiahCell", "build_cells", "open_cells"]
