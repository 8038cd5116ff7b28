"""Padding and packing change nothing: each row, each document comes out as if it were alone."""

from itertools import pairwise

import pytest
import torch
from transformers import (
    AttentionInterface,
    DynamicCache,
)

from amnesia_bench.modeling import HypeNetCache, HypeNetConfig, PackedRows
from amnesia_bench.modeling.input_errors import InvalidModelInputError
from tests.numerics.conftest import SHAPES, random_ids

LENGTHS = [1, 30, 70, 64, 7]
TOLERANCE = 1e-5


def _padded(side: str, lengths: list[int] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(lengths)
    ids, mask = random_ids(len(lengths), width), torch.ones(len(lengths), width).long()
    for row, length in enumerate(lengths):
        padding = slice(0, width - length) if side == "left" else slice(length, width)
        ids[row, padding] = 0
        mask[row, padding] = 0
    return ids, mask


def _quiet(make_model, shape="base", **changes):
    """A model whose logits are of order 1, as the tolerance presumes."""
    return make_model(shape, initializer_range=0.1, **changes)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_ragged_batch_equals_single_rows(make_model, shape, attention, side):
    model = _quiet(make_model, shape)
    model.set_attn_implementation(attention)
    ids, mask = _padded(side)
    batched = model(ids, attention_mask=mask).logits
    for row in range(len(LENGTHS)):
        real = mask[row].bool()
        alone = model(ids[row, real][None]).logits[0]
        torch.testing.assert_close(batched[row, real], alone, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", ["base", "logit_scale", "linear_only"])
def test_ragged_batch_with_cache_in_chunks_equals_single_rows(make_model, shape, side):
    model = _quiet(make_model, shape)
    ids, mask = _padded(side)
    ids = torch.cat([ids, random_ids(len(LENGTHS), 9, seed=5)], dim=1)
    mask = torch.cat([mask, torch.ones(len(LENGTHS), 9).long()], dim=1)
    cache, parts, start = HypeNetCache(model.config), [], 0
    # Chunks in which some rows are all padding, then single tokens.
    for size in (20, 30, 20, 4, 1, 1, 1, 1, 1):
        stop = start + size
        part = model(
            ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True
        )
        parts.append(part.logits)
        start = stop
    logits = torch.cat(parts, dim=1)
    for row in range(len(LENGTHS)):
        real = mask[row].bool()
        alone = model(ids[row, real][None]).logits[0]
        torch.testing.assert_close(logits[row, real], alone, rtol=0, atol=TOLERANCE)


def test_gradients_of_a_padded_batch_equal_those_of_single_rows(make_model):
    model = make_model().double()
    ids, mask = _padded("left", [5, 70])
    # A row's first token has no prediction when it is alone, so none here either.
    labels = ids.masked_fill((mask == 0) | (mask.cumsum(1) == 1), -100)
    model(ids, attention_mask=mask, labels=labels, num_items_in_batch=1).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for row in range(2):
        alone = ids[row, mask[row].bool()][None]
        model(
            alone, labels=labels[row, mask[row].bool()][None], num_items_in_batch=1
        ).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", ["base", "logit_scale", "gqa_in_linear_layers"])
def test_generate_from_left_padding_equals_single_rows(make_model, shape):
    model = make_model(shape)
    ids, mask = _padded("left")
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    for row in range(len(LENGTHS)):
        alone = ids[row, mask[row].bool()][None]
        assert torch.equal(model.generate(alone, **options)[0, alone.shape[1] :], together[row])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_documents_equal_separate_ones_in_outputs_and_gradients(
    make_model, shape, attention
):
    model = make_model(shape).double()
    model.set_attn_implementation(attention)
    ids = random_ids(1, 90)
    bounds = [0, 1, 20, 85, 90]
    packed = model(ids, cu_seqlens=torch.tensor(bounds)).logits
    (packed.log_softmax(-1)[..., 0].sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for start, stop in pairwise(bounds):
        alone = model(ids[:, start:stop]).logits
        torch.testing.assert_close(packed[:, start:stop], alone, rtol=0, atol=1e-10)
        (alone.log_softmax(-1)[..., 0].sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_changing_one_packed_document_leaves_the_others_alone(make_model, attention):
    model = make_model()
    model.set_attn_implementation(attention)
    ids = random_ids(1, 60)
    changed = ids.clone()
    changed[0, 22] += 1
    bounds = [0, 20, 45, 60]
    embeddings = [model.get_input_embeddings()(x).detach().requires_grad_() for x in (ids, changed)]
    logits = [model(inputs_embeds=x, cu_seqlens=bounds).logits for x in embeddings]
    for x, y in zip(embeddings, logits, strict=True):
        y.square().sum().backward()
        assert x.grad is not None
    same = [*range(20), *range(45, 60)]
    assert torch.equal(logits[0][:, same], logits[1][:, same])
    assert torch.equal(embeddings[0].grad[:, same], embeddings[1].grad[:, same])
    assert not torch.equal(logits[0][:, 22:45], logits[1][:, 22:45])


@torch.no_grad()
def test_restarting_positions_pack_both_mixers(make_model):
    model = make_model()
    ids, bounds = random_ids(1, 30), [0, 12, 30]
    positions = torch.cat([torch.arange(12), torch.arange(18)])[None]
    by_bounds = model(ids, cu_seqlens=bounds).logits
    assert torch.equal(model(ids, position_ids=positions).logits, by_bounds)
    assert torch.equal(model(ids, cu_seq_lens_q=torch.tensor(bounds)).logits, by_bounds)


@torch.no_grad()
def test_flash_functions_get_the_boundaries(make_model):
    """No flash kernel runs here: a stand-in checks the interface, transformers' own names."""
    calls = []

    def flash_stand_in(module, query, key, value, attention_mask, **kwargs):
        calls.append((attention_mask, kwargs["max_length_q"], kwargs["max_length_k"]))
        assert torch.equal(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"])
        bounds = kwargs["cu_seq_lens_q"].tolist()
        groups = query.shape[1] // key.shape[1]
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, a:b],
                key[:, :, a:b].repeat_interleave(groups, dim=1),
                value[:, :, a:b].repeat_interleave(groups, dim=1),
                is_causal=True,
                scale=kwargs["scaling"],
            )
            for a, b in pairwise(bounds)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None

    AttentionInterface.register("flash_stand_in", flash_stand_in)
    model, ids = make_model(), random_ids(1, 30)
    expected = model(ids, cu_seqlens=[0, 12, 30]).logits
    model.config._attn_implementation = "flash_stand_in"  # past the search for a kernel
    logits = model(ids, cu_seqlens=[0, 12, 30]).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert calls == [(None, 18, 18)] * 2


@torch.no_grad()
def test_transformers_own_cache_is_adopted_and_keeps_the_state(make_model):
    model = make_model()
    ids = random_ids(1, 20)
    full = model(ids).logits
    for cache in (DynamicCache(config=model.config), DynamicCache()):
        model(ids[:, :12], past_key_values=cache)
        rest = model(ids[:, 12:], past_key_values=cache).logits
        torch.testing.assert_close(rest, full[:, 12:], rtol=0, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(make_model):
    model = make_model().double().train()
    ids = random_ids(2, 70)
    model(ids, labels=ids, use_cache=False).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=0, atol=1e-12)


def test_a_cache_is_refused_where_checkpointing_runs_layers_twice(make_model):
    model, ids = make_model().train(), random_ids(1, 10)
    model.gradient_checkpointing_enable()
    with pytest.raises(InvalidModelInputError, match="past_key_values with gradient checkpoint"):
        model(ids, past_key_values=HypeNetCache(model.config))


def test_gradients_of_queries_survive_later_tokens_in_the_cache(make_model):
    model, ids = make_model("softmax_first_and_last").double(), random_ids(1, 20)
    model.requires_grad_(False)
    # Of the last layer: nothing after it reads a cache, which holds constants.
    weight = model.model.layers[3].self_attn.q_proj.weight.requires_grad_()
    model(ids).logits.sum().backward()
    expected, weight.grad = weight.grad, None
    cache = HypeNetCache(model.config)
    sum(model(part, past_key_values=cache).logits.sum() for part in ids.split(10, 1)).backward()
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=1e-8)


@torch.no_grad()
def test_inputs_of_a_layer_move_to_another_device_but_for_the_cache(make_model):
    """What accelerate does before each layer of a model that `device_map` has spread out."""
    model, ids = make_model("logit_scale"), random_ids(2, 10)
    mask = torch.ones(2, 10).long()
    mask[0, :3] = 0
    seen = []
    hook = lambda module, args: seen.append(args[1])  # noqa: E731
    model.model.layers[0].register_forward_pre_hook(hook)
    cache = HypeNetCache(model.config)
    model(ids, attention_mask=mask, past_key_values=cache)
    moved = seen[0].to("meta", non_blocking=True)
    assert moved.cache is cache
    assert moved.layout.padding.packed.bounds == seen[0].layout.padding.packed.bounds
    tensors = [
        moved.query_scale,
        moved.softmax_mask,
        *moved.lightning_rotation,
        moved.layout.position_ids,
        moved.layout.attention_mask,
        moved.layout.padding.token_index,
        moved.layout.padding.row_index,
        moved.layout.padding.packed.cu_seqlens,
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@torch.no_grad()
def test_a_chunk_of_padding_only_leaves_no_trace(make_model):
    model = make_model()
    ids, mask = random_ids(1, 30), torch.tensor([[0] * 20 + [1] * 10])
    cache = HypeNetCache(model.config)
    for start, stop in ((0, 8), (8, 16), (16, 30)):
        out = model(
            ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True
        )
    alone = model(ids[:, 20:]).logits
    torch.testing.assert_close(out.logits[:, 4:], alone, rtol=0, atol=1e-4)


BAD_INPUTS = {
    "input_ids is empty": lambda m, x: m(x[:, :0]),
    "attention_mask marks every token of row 1": lambda m, x: m(
        x, attention_mask=torch.tensor([[1] * 10, [0] * 10])
    ),
    r"attention_mask is \(2, 9\), expected \(2, 10\)": lambda m, x: m(
        x, attention_mask=torch.ones(2, 9)
    ),
    "attention_mask marks every token of row 0": lambda m, x: m.generate(
        x, attention_mask=torch.tensor([[0] * 10, [1] * 10]), max_new_tokens=2
    ),
    "attention_mask ends in padding": lambda m, x: m.generate(
        x, attention_mask=torch.tensor([[1] * 9 + [0], [1] * 10]), max_new_tokens=2
    ),
    "cu_seqlens with 2 rows": lambda m, x: m(x, cu_seqlens=[0, 10]),
    "cu_seqlens ends at 9, but the row has 10 tokens": lambda m, x: m(x[:1], cu_seqlens=[0, 4, 9]),
    "cu_seqlens ends at 8, but the row has 10": lambda m, x: m(
        x[:1], cu_seqlens=PackedRows.from_cu_seqlens([0, 8], 8, x.device)
    ),
    "boundaries are whole numbers": lambda m, x: m(x[:1], cu_seqlens=torch.tensor([0.0, 4.5, 10])),
    "cu_seqlens is not increasing": lambda m, x: m(x[:1], cu_seqlens=[0, 4, 4, 10]),
    "cu_seqlens together with padding": lambda m, x: m(
        x[:1], cu_seqlens=[0, 10], attention_mask=torch.tensor([[0] + [1] * 9])
    ),
    "cu_seqlens with past_key_values": lambda m, x: m(
        x[:1], cu_seqlens=[0, 4, 10], past_key_values=HypeNetCache(m.config)
    ),
    "position 16384 is outside max_position_embeddings": lambda m, x: m(
        x, position_ids=torch.arange(16375, 16385)[None]
    ),
    "position -1 is outside": lambda m, x: m(x, position_ids=torch.arange(-1, 9)[None]),
    "position_ids has shape": lambda m, x: m(x, position_ids=torch.arange(9)[None]),
    "position_ids restart inside 2 rows": lambda m, x: m(
        x, position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
    ),
    "exactly one of input_ids and inputs_embeds": lambda m, x: m(),
    "past_key_values holds 2 rows, but the input has 1": lambda m, x: m(
        x[:1], past_key_values=m(x, use_cache=True).past_key_values
    ),
    "past_key_values was made for a model with other layers": lambda m, x: m(
        x, past_key_values=HypeNetCache(HypeNetConfig(num_hidden_layers=4))
    ),
    "past_key_values is a list": lambda m, x: m(x, past_key_values=[]),
    "cache_implementation is 'static'": lambda m, x: m.generate(
        x, cache_implementation="static", max_new_tokens=2
    ),
}


@pytest.mark.parametrize("message", BAD_INPUTS)
def test_bad_input_is_refused_by_name(make_model, message):
    with pytest.raises(InvalidModelInputError, match=message):
        BAD_INPUTS[message](make_model(), random_ids(2, 10))


def test_the_length_limit_holds_without_position_ids_and_not_without_rope(make_model):
    ids = random_ids(1, 33)
    with pytest.raises(
        InvalidModelInputError, match=r"position 32 .* max_position_embeddings \(32\)"
    ):
        make_model(max_position_embeddings=32)(ids)
    assert make_model("bare_mixers", max_position_embeddings=32)(ids).logits.shape[1] == 33
    # Padding takes no positions.
    mask = torch.tensor([[0] + [1] * 32])
    assert make_model(max_position_embeddings=32)(ids, attention_mask=mask).logits.shape[1] == 33
