"""The request to compare two evaluations."""

from __future__ import annotations

from amnesia_bench.requests.base import Location, Request


class CompareRequest(Request):
    """`compare`: compare two evaluations of the same tasks, sample by sample.

    Attributes:
        a, b: folders or files of sample logs of lm-eval or inspect_ai, or folders of cells that
            `evaluate` or `score` wrote. Differences are B minus A.
        common_only: compare what both evaluations contain, and list the rest; otherwise, samples,
            tasks or metrics that only one of them contains are an error.
        different_prompts: accept that the two evaluations asked the same samples with different
            prompts, so that the difference includes the effect of the prompt.
    """

    a: Location
    b: Location
    common_only: bool = False
    different_prompts: bool = False
