"""Bound the speed of training steps by their kernels' FLOPs and bytes, without a GPU.

python scripts/bench_roofline.py                          # all models: SFT, before and after
python scripts/bench_roofline.py --model 2b --stage stage2
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from amnesia_bench.config.load import load_model_file, load_training
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.gpus import GPUS, KERNEL_RATES, KernelRates
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.modeling import mixers
from amnesia_bench.training import objectives
from amnesia_bench.training.dry_run.compiled_kernels import CompiledGraph, counted_compilation
from amnesia_bench.training.dry_run.fake_training import fake_training
from amnesia_bench.training.dry_run.kernel_costs import Kernel, KernelCounter, KernelKind
from amnesia_bench.training.dry_run.phases import Phase
