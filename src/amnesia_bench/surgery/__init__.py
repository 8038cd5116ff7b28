"""QK-Restore and its variants: plan, edit and prove, on checkpoint folders."""

from amnesia_bench.surgery.diff import diff_checkpoints
from amnesia_bench.surgery.restoration import plan_restore, restore
from amnesia_bench.surgery.verification import verify

__all__ = ["diff_checkpoints", "plan_restore", "restore", "verify"]
