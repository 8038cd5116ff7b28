"""Examine the whole machine."""

from __future__ import annotations

from amnesia_bench.pipeline.doctor.devices import gpu_checks, sandbox_checks, slurm_checks
from amnesia_bench.pipeline.doctor.packages import package_checks
from amnesia_bench.pipeline.doctor.result import HealthCheck, examined
from amnesia_bench.pipeline.doctor.services import hub_checks, wandb_checks
from amnesia_bench.pipeline.doctor.storage import storage_checks
from amnesia_bench.pipeline.doctor.warming import warming_checks
from amnesia_bench.requests.experiments import DoctorRequest
from amnesia_bench.store.layout import store_root


def doctor(request: DoctorRequest) -> tuple[HealthCheck, ...]:
    """Return what this machine can do, and how to repair what is broken or add what is absent.

    It raises no exception, whatever is broken. It writes only to a temporary folder in the store.
    """
    examinations = {
        "packages": package_checks,
        "GPU": gpu_checks,
        "sandbox": sandbox_checks,
        "SLURM": slurm_checks,
        "store": lambda: storage_checks(request.store or store_root()),
        "hub": hub_checks,
        "W&B": wandb_checks,
    }
    if request.gpu:
        examinations["kernels"] = warming_checks
    return tuple(
        check for topic, examine in examinations.items() for check in examined(topic, examine)
    )
