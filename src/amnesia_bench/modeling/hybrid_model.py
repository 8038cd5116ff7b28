"""The causal LM that HypeNet and Jet-Nemotron share: embeddings, decoder layers, norm and head.

A subclass determines the class of its decoder layers, and its rotary embeddings and logit scale.

Shapes: B batch, T new tokens, P cached tokens, M hidden size, E vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .causal_attention import CAUSAL_SDPA, padded_causal_mask
from .decoder_layer import HybridDecoderLayer
from .hybrid_cache import HypeNetCache, adopt_cache, cached_length
from .hybrid_config import HybridConfig
from .input_errors import InvalidModelInputError
from .mixers import MixerInputs
from .packing import Boundaries
from .rotary import HypeNetRotaryEmbedding
from .sliding_attention import SlidingWindow
from .token_layout import TokenInputs, TokenLayout, lay_out, refuse_rows_without_tokens


class HybridPreTrainedModel(PreTrainedModel):
    """The base class: loading, initialisation, and the attributes that transformers requires."""

    config: HybridConfig

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - transformers' interface
    _supports_flash_attn = True
    _supports_sdpa = True
    _is_stateful = True
    # The keys to compare if tensors do not fit config.json.
    _shape_keys: ClassVar[str]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint; the arguments are those of transformers.

        Raises:
            InvalidModelInputError: tensors are missing or unexpected, or have another shape.
                transformers would only warn, and use random values for missing tensors.
        """
        with_info = kwargs.pop("output_loading_info", False)
        # Shapes are checked below instead, with an error message that contains the tensor name.
        shapes_may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
        model, info = loaded
        problems = [f"missing tensor {name}" for name in sorted(info["missing_keys"])]
        problems += [f"unexpected tensor {name}" for name in sorted(info["unexpected_keys"])]
        if not shapes_may_differ:
            problems += [
                f"tensor {name} has shape {list(shape)}, but config.json implies {list(expected)}"
                for name, shape, expected in sorted(info["mismatched_keys"])
            ]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise InvalidModelInputError(
                f"{pretrained_model_name_or_path}: {problems[0]}{more}",
                hint=f"The tensors do not fit config.json: compare its {cls._shape_keys}.",
            )
        return (model, info) if with_info else model


class HybridModel(HybridPreTrainedModel):
    """The model without its head: embeddings, decoder layers and the final norm."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012 - transformers' interface

    layer_class: ClassVar[type[HybridDecoderLayer]]

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            self.layer_class(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = self.layer_class.norm(config.hidden_size, config.rms_norm_eps)
        self.attn_rotary_emb, self.lightning_rotary_emb = self.rotary_embeddings(config)
        self.gradient_checkpointing = False
        self.post_init()

    @staticmethod
    def rotary_embeddings(config: Any) -> tuple[HypeNetRotaryEmbedding | None, ...]:
        """Return those of softmax layers and of linear layers; by default, none rotate."""
        return None, None

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # noqa: PLR0913 - transformers' interface
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        cu_seqlens: Boundaries | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the final hidden states [B, T, M], with the cache and attention weights if any.

        Args:
            input_ids: token ids [B, T]; give either these or `inputs_embeds`.
            attention_mask: padding mask, 0 for padding, in a shape that `TokenInputs` describes.
            position_ids: positions [B, T]; by default they count the tokens that are not padding.
            past_key_values: a `HypeNetCache`, or an empty cache of transformers.
            inputs_embeds: embeddings [B, T, M] instead of token ids.
            use_cache: whether to return a cache; packed rows never return one.
            output_attentions: whether to return the weights [B, H, T, P + T] of softmax layers.
            cu_seqlens: boundaries [N + 1], from 0 to T, of N documents that are packed in one row
                and kept apart; `position_ids` that restart at 0 have the same effect.
            **kwargs: keyword arguments for the attention function.

        Raises:
            InvalidModelInputError: see `token_layout.lay_out` and `adopt_cache`.
        """
        hidden_states = self._embed(input_ids, inputs_embeds)
        # The flattening data collator of transformers uses this name for the boundaries.
        boundaries = kwargs.pop("cu_seq_lens_q", None)
        if past_key_values is not None:
            past_key_values = self._check_cache(past_key_values, batch=hidden_states.shape[0])
        token_inputs = TokenInputs(
            batch=hidden_states.shape[0],
            num_tokens=hidden_states.shape[1],
            num_cached=0 if past_key_values is None else cached_length(past_key_values),
            device=hidden_states.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cu_seqlens=boundaries if cu_seqlens is None else cu_seqlens,
            has_cache=past_key_values is not None,
        )
        layout = lay_out(token_inputs, self.config)
        use_cache = bool(use_cache) and layout.packed is None
        if use_cache and past_key_values is None:
            past_key_values = HypeNetCache(self.config)
        want_weights = bool(output_attentions or self.config.output_attentions)
        inputs = self._mixer_inputs(hidden_states, layout, past_key_values, want_weights)
        weights: list[Any] = []  # Tensor, or None for a linear layer
        for layer in self.layers:
            hidden_states, layer_weights = layer(hidden_states, inputs, **kwargs)
            weights.append(layer_weights)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
            attentions=tuple(weights) if want_weights else None,
        )

    def _check_cache(self, cache: Any, batch: int) -> Cache:
        if self.gradient_checkpointing and self.training:
            raise InvalidModelInputError(
                "past_key_values with gradient checkpointing: layers would fill it twice",
                hint="Leave past_key_values out in training.",
            )
        return adopt_cache(cache, self.config, batch)

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise InvalidModelInputError("give exactly one of input_ids and inputs_embeds")
        embeddings: Tensor = (
            self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        )
        return embeddings

    def _mixer_inputs(
        self, x: Tensor, layout: TokenLayout, cache: Cache | None, want_weights: bool
    ) -> MixerInputs:
        positions = layout.position_ids
        attn_rotary, lightning_rotary = self.attn_rotary_emb, self.lightning_rotary_emb
        return MixerInputs(
            layout=layout,
            cache=cache,
            softmax_rotation=None if attn_rotary is None else attn_rotary(x, positions),
            lightning_rotation=None if lightning_rotary is None else lightning_rotary(x, positions),
            query_scale=self._query_scale(positions),
            softmax_mask=self._softmax_mask(x, layout, cache, want_weights),
            want_weights=want_weights,
            window=self._window(x, layout, cache),
        )

    def _window(self, x: Tensor, layout: TokenLayout, cache: Cache | None) -> SlidingWindow | None:
        kinds = self.config.layer_types
        if "sliding_attention" not in kinds:
            return None
        layer: Any = None if cache is None else cache.layers[kinds.index("sliding_attention")]
        stored = 0 if layer is None else layer.columns
        return SlidingWindow.of(layout, self.config.window_size, stored, num_tokens=x.shape[1])

    def _query_scale(self, positions: Tensor) -> Tensor | None:
        """Return the factor on the queries of softmax layers [B or 1, T, 1, 1], or None."""
        return None

    def _softmax_mask(
        self, x: Tensor, layout: TokenLayout, cache: Cache | None, want_weights: bool
    ) -> Any:
        if not self.config.softmax_layers:
            return None
        config = self.config
        if want_weights and config._attn_implementation != "eager":
            config = copy.copy(config)
            config._attn_implementation = "eager"
        eager = config._attn_implementation == "eager"
        if layout.packed is not None and not eager:
            return None  # attention runs per document, or with flash attention's boundaries
        if config._attn_implementation in ("sdpa", CAUSAL_SDPA):
            # `causal_sdpa` needs a mask for padding only. transformers would look for padding
            # again, although the layout already tells.
            valid = layout.attention_mask
            return None if valid is None else padded_causal_mask(valid, x.shape[1])
        return create_causal_mask(
            config=config,
            inputs_embeds=x,
            attention_mask=layout.attention_mask,
            past_key_values=cache,
            # transformers recognises packed rows by positions that restart in each document.
            position_ids=None if layout.packed is None else layout.packed.positions(),
        )


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """A hybrid model with a language-model head, whose weights may be tied to the embeddings."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - same

    model_class: ClassVar[type[HybridModel]]

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: PLR0913 - transformers' interface; generate reads these names
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Boundaries | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits [B, T, E], and the loss if `labels` are given.

        If `logits_to_keep` is a positive integer n, only the logits of the last n tokens are
        returned; if it is a tensor, it contains the indices of the tokens to keep. The other
        arguments are those of `HybridModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            cu_seqlens=cu_seqlens,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        mask = model_kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            refuse_rows_without_tokens(mask)
            if not bool(mask[:, -1].all()):
                raise InvalidModelInputError(
                    "attention_mask ends in padding: the last column has no token to continue",
                    hint='Pad prompts on the left (tokenizer.padding_side = "left").',
                )
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic"):
            raise InvalidModelInputError(
                f"cache_implementation is {implementation!r}; hybrid models use their own cache",
                hint="Leave cache_implementation unset.",
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = HypeNetCache(self.config)
            return None
        mixin: Any = GenerationMixin
        return mixin._prepare_cache_for_generation(
            self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
