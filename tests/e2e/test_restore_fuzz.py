"""Whatever lies in a checkpoint folder, restore and diff succeed or end in one UserError."""

from __future__ import annotations

import io
import json
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from amnesia_bench.cli.main import main
from amnesia_bench.errors import ExitCode
from amnesia_bench.weights.families import FAMILIES, REFUSED
from amnesia_bench.weights.header import DTYPE_BITS
from tests.support.checkpoints import config as hypenet_config
from tests.support.checkpoints import random_model, tensor_bytes

HIDDEN = 8


def _projections(block: str, rows: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        f"{block.format(layer)}{name}.weight": (HIDDEN, 8) if name in OUTPUTS else (count, HIDDEN)
        for layer in range(2)
        for name, count in rows.items()
    }


OUTPUTS = ("o_proj", "dense")
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
SEPARATE = {"q_proj": 8, "k_proj": 4, "v_proj": 4, "o_proj": 8}
# Small whole checkpoints: config, and the shapes of their tensors.
MODELS: list[tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = [
    (hypenet_config(), {name: value.shape for name, value in random_model(0).items()}),
    (
        {"model_type": "llama", "rope_theta": 1e4, **SIZES},
        _projections("model.layers.{}.self_attn.", SEPARATE) | {"lm_head.weight": (4, HIDDEN)},
    ),
    (
        {"model_type": "phi3", "sliding_window": None, **SIZES},
        _projections("model.layers.{}.self_attn.", {"qkv_proj": 16, "o_proj": 8}),
    ),
    (
        {"model_type": "gpt_neox", "attention_bias": False, **SIZES, "num_key_value_heads": 2},
        _projections("gpt_neox.layers.{}.attention.", {"query_key_value": 24, "dense": 8}),
    ),
    (
        {"text_config": {"model_type": "qwen3_next", "full_attention_interval": 1, "head_dim": 4,
                         "rope_parameters": {"rope_type": "default"}, **SIZES}},
        _projections("model.language_model.layers.{}.self_attn.", SEPARATE | {"q_proj": 16})
        | {f"model.language_model.layers.{layer}.self_attn.{x}_norm.weight": (4,)
           for layer in range(2) for x in "qk"},
    ),
]  # fmt: skip
KEYS = sorted(
    {key for config, _ in MODELS for key in config}
    | {key for family in FAMILIES for key in (*family.defaults, *family.routing)}
    | {
        "model_type", "text_config", "quantization_config", "rope_scaling", "rope_parameters",
        "rope_theta", "partial_rotary_factor", "rotary_dim", "layer_types", "attn", "head_dim",
        "sliding_window", "use_sliding_window", "max_window_layers", "attn_layer_indices",
        "hybrid_override_pattern", "layers_block_type", "num_hidden_layers", "attention_bias",
        "hidden_size", "num_attention_heads", "num_key_value_heads", "torch_dtype", "dtype",
    }
)  # fmt: skip
MODEL_TYPES = sorted({name for f in FAMILIES for name in f.model_types} | set(REFUSED))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(
        ["full_attention", "linear_attention", "attention", "yarn", "mrope", "default", "longrope"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["rope_type", "rope_theta", "factor", "layers", "full_attention", "type",
                         "num_heads", "quant_method", "original_max_position_embeddings", ""]),
        inner, max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip
PREFIXES = ("", "_orig_mod.", "module.", "base_model.model.", "a.", "model.", "\x1b[2J.", "\ud800.")
NAMES = st.sampled_from(
    [
        "mtp.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.lora_A.default.weight",
        "model.layers.99999999999999999999.x",
        "layers.٣.x",
        "lm_head.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_proj.qweight",
        "model.layers.1._orig_mod.self_attn.q_proj.weight",
        ".",
        "",
    ]
) | st.text(max_size=8)
SHAPES = st.lists(st.integers(0, 5), max_size=3)
DTYPES = ("F32", "BF16", "F64", "F16")


def one_in(n: int) -> st.SearchStrategy[bool]:
    """True once in n draws. Hypothesis itself draws the ends of a range far more often."""
    seeds = st.integers(0, 2**32 - 1)
    return seeds.map(lambda seed: zlib.crc32(seed.to_bytes(4, "big")) // 7 % n == n - 1)


@st.composite
def configs(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    """A config with a few keys changed, in the wrapper or in the decoder's."""
    config = json.loads(json.dumps(config))
    for _ in range(2 if draw(one_in(8)) else draw(one_in(4))):
        inner = config.get("text_config")
        at = inner if isinstance(inner, dict) and draw(st.booleans()) else config
        key = draw(st.sampled_from(KEYS))
        if draw(one_in(4)):
            at.pop(key, None)
        else:
            types = st.sampled_from(MODEL_TYPES)
            at[key] = draw(types if key == "model_type" else VALUES)
    if draw(one_in(20)):
        config = {"model_type": draw(SCALARS), "text_config": config}
    return config


@st.composite
def folders(draw: st.DrawFn, model: int) -> dict[str, bytes]:
    """The files of a checkpoint folder: name -> content."""
    config, shapes = MODELS[model]
    shapes = dict(shapes)
    for _ in range(2 if draw(one_in(8)) else draw(one_in(4))):
        change = draw(st.sampled_from(["add", "drop", "reshape"]))
        name = draw(NAMES if change == "add" else st.sampled_from(sorted(shapes)))
        if change == "drop":
            del shapes[name]
        else:
            shapes[name] = tuple(draw(SHAPES))
    prefix = draw(st.sampled_from(PREFIXES)) if draw(st.booleans()) else ""
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    dtype = draw(st.sampled_from(DTYPES))
    odd = draw(st.sampled_from(sorted(shapes))) if shapes and draw(one_in(12)) else None
    odd_dtype = draw(st.sampled_from(sorted(DTYPE_BITS)))
    rng = np.random.default_rng(draw(st.integers(0, 3)))
    wild = draw(one_in(12))  # any bits: NaN, infinity, numbers that overflow
    split = draw(st.integers(1, 2))
    files = {"config.json": json.dumps(draw(configs(config))).encode()}
    names = sorted(shapes)
    weight_map = {}
    for i in range(split):
        shard = "model.safetensors" if split == 1 else f"model-{i}.safetensors"
        mine = {n: (odd_dtype if n == odd else dtype, shapes[n]) for n in names[i::split]}
        files[shard] = _safetensors(mine, rng, wild=wild)
        weight_map |= dict.fromkeys(mine, shard)
    if split > 1:
        files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return draw(damaged(files))


def _safetensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], rng: np.random.Generator, *, wild: bool
) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape) in tensors.items():
        size = -(-int(np.prod(shape)) * DTYPE_BITS[dtype] // 8)
        begin = len(data)
        # Bytes below 0x40 are small numbers in every format.
        data += rng.integers(0, 256 if wild else 0x40, size, dtype=np.uint8).tobytes()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def damaged(draw: st.DrawFn, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files as they are or, once in twelve times, one of them cut, changed or missing."""
    if not draw(one_in(12)):
        return files
    name = draw(st.sampled_from(sorted(files)))
    blob = bytearray(files[name])
    change = draw(st.sampled_from(["cut", "flip", "insert", "remove"]))
    at = draw(st.integers(0, max(min(len(blob), 300) - 1, 0)))
    if change == "cut":
        del blob[at:]
    elif change == "flip" and blob:
        blob[at] = draw(st.integers(0, 255))
    elif change == "insert":
        blob[at:at] = draw(st.sampled_from([b"[" * 5000, b'"a":1,', b"1" * 5000, b"\xff", b"{}"]))
    rest = {other: content for other, content in files.items() if other != name}
    return rest if change == "remove" else rest | {name: bytes(blob)}


INDICES = st.sampled_from(range(len(MODELS)))
PAIRS = st.tuples(INDICES, INDICES, one_in(12)).flatmap(
    lambda drawn: st.tuples(folders(drawn[0]), folders(drawn[1] if drawn[2] else drawn[0]))
)
OPTIONS = st.lists(
    st.sampled_from(["--cast", "--allow-noop", "--json", "--layers=top1", "--layers=1"]),
    unique=True,
    max_size=3,
).map(lambda drawn: sorted({*drawn} ^ {"--cast", "--allow-noop"}))
VARIANTS = st.sampled_from(
    ["qk", "qk", "v", "qk_norms", "qk_pro", "qk_pro_layer", "qk_procrustes", "qk_blend"]
)


def run(*command: str) -> tuple[int, str]:
    """Return exit code and output of a command; what it does not expect is raised here."""
    out, err = io.BytesIO(), io.BytesIO()
    # As the interpreter's own: what cannot be encoded is an error in one, and escaped in the other.
    stdout = io.TextIOWrapper(out, "utf-8", "strict")
    stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace")
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = main(list(command))
        stdout.flush()
        stderr.flush()
    text = (out.getvalue() + err.getvalue()).decode()
    assert code in (ExitCode.DONE, ExitCode.USER_ERROR), text
    return code, text


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(pair=PAIRS, variant=VARIANTS, options=OPTIONS)
@example(
    pair=(
        {"config.json": b"{}", "model.safetensors": (2).to_bytes(8, "little") + b"{}"},
        {"config.json": b"[]", "model.safetensors": b""},
    ),
    variant="qk",
    options=[],
)
def test_no_checkpoint_folder_ends_in_a_traceback(
    pair: tuple[dict[str, bytes], dict[str, bytes]], variant: str, options: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as work:
        pre, post, out = (Path(work) / name for name in ("pre", "post", "out"))
        for folder, files in ((pre, pair[0]), (post, pair[1])):
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
        code, _ = run("diff", str(pre), str(post), *(o for o in options if o == "--json"))
        event(f"diff {code}")
        code, _ = run(
            "restore", "--pre", str(pre), "--post", str(post), "--out", str(out),
            "--variant", variant, *options,
        )  # fmt: skip
        event(f"restore {code}")
        if code == ExitCode.USER_ERROR:
            assert not out.exists()
            assert [path.name for path in Path(work).iterdir() if path not in (pre, post)] == []
            return
        assert run("verify", str(out))[0] == ExitCode.DONE
        record = json.loads((out / "restoration.json").read_text())
        _only_planned_rows_changed(record, tensor_bytes(post), tensor_bytes(out))


def _only_planned_rows_changed(
    record: dict[str, Any], before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    planned: dict[str, list[tuple[int, int]]] = {}
    for tensor in record["tensors"]:
        width = tensor["planned_bytes"] // sum(stop - start for start, stop in tensor["rows"])
        planned.setdefault(tensor["name"], []).extend(
            (start * width, stop * width) for start, stop in tensor["rows"]
        )
    assert after.keys() == before.keys()
    for name, was in before.items():
        now = bytearray(after[name])
        for start, stop in planned.get(name, ()):
            now[start:stop] = was[start:stop]
        assert bytes(now) == was, name
