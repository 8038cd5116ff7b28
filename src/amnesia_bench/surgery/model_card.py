"""Write the model card of a repaired checkpoint: Markdown with the hub's metadata in front.

The text depends only on the two checkpoints and the variant, and contains no absolute path, so that
the same restore writes the same bytes anywhere.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.markdown import block, code, escape
from amnesia_bench.records.restoration import EditedTensor, Restoration
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import is_finished, read_manifest

_CARD = "README.md"
# If post brings a card of its own, that is kept, and ours gets one of these names.
_OTHER_NAMES = ("MODEL_CARD.md", "RESTORED.md")
_MAX_CARD_BYTES = 1 << 20
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_LICENCE = re.compile(r"^license(?:_name|_link)?:[ \t]*\S.*$", re.MULTILINE)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_IN_CACHE = re.compile(r"models--(.+?)--(.+)")
_PLAIN = re.compile(r"[A-Za-z][\w./-]*")


def card_name(names: Collection[str]) -> str | None:
    """Return the name of the card in a folder with files of these names; None if all are taken."""
    taken = {name.lower() for name in names}
    return next((name for name in (_CARD, *_OTHER_NAMES) if name.lower() not in taken), None)


def licence_of(folder: Path) -> tuple[str, ...]:
    """Return the lines with the licence in the metadata of a checkpoint's card, if there are any.

    The lines are YAML: `license: ID`, and for other licences `license_name` and `license_link`.
    """
    try:
        with (folder / _CARD).open(encoding="utf-8", errors="replace") as file:
            metadata = _FRONT_MATTER.match(file.read(_MAX_CARD_BYTES))
    except OSError:
        return ()
    return () if metadata is None else tuple(map(str.rstrip, _LICENCE.findall(metadata[1])))


def licence_warning(pre: Path, post: Path) -> str | None:
    """Return a warning if the cards of the two checkpoints state different licences, else None."""
    of_pre, of_post = licence_of(pre), licence_of(post)
    if not of_pre or of_pre == of_post:
        return None
    stated = "; ".join(of_post) or "none"
    return (
        f"The cards state different licences: pre {'; '.join(of_pre)}, post {stated}. The repaired "
        "checkpoint contains weights of both."
    )


def model_card(record: Restoration, pre: Path, post: Path, results: str | None = None) -> str:
    """Return the model card of a repaired checkpoint.

    Args:
        record: the record of the restore.
        pre: the folder of the checkpoint before the fine-tune.
        post: the folder of the fine-tune.
        results: Markdown about the measured recall and reasoning of the repaired checkpoint.
    """
    names, variant = (_name(pre), _name(post)), str(record.variant["name"])
    warning = licence_warning(pre, post)
    rows = [_row(tensor) for tensor in record.tensors]
    changed = "All weights are changed"
    unchanged = "The config and the tokenizer"
    if record.restored_layers:
        layers = ", ".join(map(str, record.restored_layers))
        changed = f"Weights of the softmax layers {layers} are changed"
        unchanged = "All other weights, the config and the tokenizer"
    lines = [
        *_metadata(names, licence_of(post)),
        "",
        f"# {escape(names[1])}, repaired with amnesia_bench",
        "",
        f"{code(names[1])} with weights of {code(names[0])}, the checkpoint before the fine-tune, "
        f"put back to restore long-range recall. {changed} by the variant {code(variant)}. "
        f"{unchanged} are those of {code(names[1])}, byte for byte.",
        *([] if warning is None else ["", warning]),
        "",
        *block(_typed("restore", names, *_options(record), "--out", "REPAIRED"), "sh"),
        "",
        f"All settings of the variant: {code(json.dumps(record.variant, sort_keys=True))}",
        "",
        "Drift is |post - pre| / |pre|; restored is |repaired - post| / |pre| (Frobenius norms).",
        "",
        "| layer | weights | drift of the fine-tune | restored |",
        "|---|---|---|---|",
        *rows,
        "",
        "Hashes of the restored tensors are in `restoration.json`; `amnesia verify` compares them. "
        + ("" if results else "The restore measures neither recall nor reasoning; ")
        + "this measures recall:",
        "",
        *block(_typed("check", names, "--restored", "REPAIRED", "--prompts", "PROMPTS"), "sh"),
        *([] if results is None else ["", results.rstrip("\n")]),
    ]
    return "\n".join(lines) + "\n"


def _metadata(names: tuple[str, str], licence: Collection[str]) -> list[str]:
    pre, post = names
    return [
        "---",
        "base_model:",
        *(f"- {_scalar(name)}" for name in dict.fromkeys((post, pre))),
        "base_model_relation: merge",
        *licence,
        "library_name: transformers",
        "tags:",
        "- qk-restore",
        "- merge",
        "---",
    ]


def _scalar(text: str) -> str:
    """Return a text as YAML; JSON strings are YAML, too."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _typed(command: str, names: tuple[str, str], *options: str) -> str:
    return shlex.join(["amnesia", command, "--pre", names[0], "--post", names[1], *options])


def _options(record: Restoration) -> list[str]:
    """Return the options that select the variant; a measured one also needs its measurement."""
    measured = ["--measured", "MEASURED"] if "measured" in record.variant else []
    name, rule = str(record.variant["name"]), record.variant.get("rule")
    # The shares of a tuned variant are in a file of the repaired folder, not in our configs.
    own_file = isinstance(rule, Mapping) and rule.get("kind") == "role_blend"
    return ["--variant", f"{name}.yaml" if own_file else name, *measured]


def _row(tensor: EditedTensor) -> str:
    shares = tensor.relative_drift, tensor.relative_repair
    cells = ["-" if share is None else f"{100 * share:.3g} %" for share in shares]
    layer = "" if tensor.layer is None else str(tensor.layer)
    weights = code(tensor.name) if tensor.role is None else tensor.role.value
    return f"| {layer} | {weights} | {' | '.join(cells)} |"


def _name(folder: Path) -> str:
    """Return the name of a checkpoint on the hub as far as it is known, else its folder's name."""
    folder = folder.resolve()
    if is_finished(folder):
        for parent in read_manifest(folder).parents:
            if parent.role == "model" and parent.location.startswith("hf://"):
                return parent.location.removeprefix("hf://")
    for place in folder.parents:
        if (cached := _IN_CACHE.fullmatch(place.name)) is not None:
            return f"{cached[1]}/{cached[2]}"
    return _saved_name(folder) or folder.name


def _saved_name(folder: Path) -> str | None:
    """Return the repository from which older versions of transformers saved a checkpoint."""
    try:
        config = read_json(folder / "config.json")
    except (UserError, OSError):
        return None
    name = config.get("_name_or_path") if isinstance(config, Mapping) else None
    return name if isinstance(name, str) and _REPOSITORY.fullmatch(name) else None
