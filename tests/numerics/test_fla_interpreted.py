"""fla's own kernels, through the op of the package, in Triton's interpreter: no GPU is needed.

The interpreter shows that formulas, boundaries and states are right. It shows no rounding of a
tensor core by itself, so operands are rounded to TF32 or bfloat16 where a test says so. It cannot
compute with bfloat16 tensors, so float16 ones stand in for them.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.triton_interpreter import Case

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]

# All head dims of configs/model/hypenet.yaml are here (16, 32 and 128), and 8, which is less than
# the smallest tile; also lengths around a chunk of 64 tokens.
CASES = [
    Case(2, 130, 2, 16),
    Case(1, 96, 2, 32),
    Case(1, 100, 2, 32, bounds=(0, 5, 90, 100)),
    Case(1, 128, 2, 128),
    Case(1, 150, 2, 8, bounds=(0, 1, 63, 150)),
    Case(1, 200, 3, 64, bounds=(0, 64, 65, 200), with_state=False),
    Case(2, 5, 6, 16),
    Case(2, 1, 2, 128),
]
TF32 = [
    Case(1, 320, 2, 64, products="tf32"),
    Case(1, 320, 2, 64, bounds=(0, 40, 200, 320), products="tf32"),
]
BFLOAT16 = [Case(1, 320, 2, 64, products="bfloat16"), Case(1, 128, 2, 128, products="bfloat16")]
FLOAT16 = [
    Case(1, 150, 1, 64, bounds=(0, 40, 150), products="float16"),
    Case(1, 100, 1, 128, products="float16"),
]


def _run(cases):
    command = [sys.executable, "-m", "tests.support.triton_interpreter"]
    given = json.dumps([asdict(case) for case in cases])
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    cases = CASES + BFLOAT16 + FLOAT16 + TF32
    return dict(zip(map(str, cases), _run(cases), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_equal_float64_forward_and_backward(found, case):
    errors = {name: error["relative"] for name, error in found[str(case)].items()}
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", TF32 + BFLOAT16 + FLOAT16, ids=str)
def test_rounded_products_stay_within_the_tolerances_of_the_gpu_tests(found, case):
    tolerance = {"tf32": 2e-3, "bfloat16": 2e-2, "float16": 3e-3}[case.products]
    errors = {name: error["allowance"] for name, error in found[str(case)].items()}
    assert max(errors.values()) < tolerance, errors
    # The operands were rounded.
    assert found[str(case)]["output"]["relative"] > 1e-5


def test_a_packed_row_with_states_equals_float64():
    """The one case of the normal suite."""
    (errors,) = _run([Case(1, 70, 1, 16, bounds=(0, 3, 70))])
    assert max(error["relative"] for error in errors.values()) < 1e-6, errors
