"""Small tokenizers of several kinds, trained on the spot, saved as a checkpoint holds them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

_BOS = "<s>"


def train_metaspace(folder: Path, text: str) -> Path:
    """Train a BPE as SentencePiece's (Llama 2, Mistral): no splitting before merging, a BOS."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace()
    # Trained word by word, or one merge would swallow a sentence; used without the splitting.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<unk>", _BOS, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=list("0123456789"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    tokenizer.pre_tokenizer = None
    _add_bos(tokenizer)
    return _save(tokenizer, folder)


def train_byte_level(folder: Path, text: str) -> Path:
    """Train a byte-level BPE with a small vocabulary, split into words as GPT-2's."""
    return _train_bytes(folder, text, pre_tokenizers.ByteLevel(add_prefix_space=False))


def train_chunks_of_5(folder: Path, text: str) -> Path:
    """Train a BPE that cuts every text into five characters each, counted from its beginning.

    What is inserted moves all the cuts behind it, and a needle's value is cut wherever one falls.
    """
    return _train_bytes(folder, text, _chunks(5))


def train_chunks_of_3000(folder: Path, text: str) -> Path:
    """Train the same with chunks so long that the neighbourhood of a needle seldom shows one."""
    return _train_bytes(folder, text, _chunks(3000))


def _chunks(length: int) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.FixedLength(length=length),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _train_bytes(folder: Path, text: str, splitting: pre_tokenizers.PreTokenizer) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[_BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return _save(tokenizer, folder)


def _add_bos(tokenizer: Tokenizer) -> None:
    bos = (_BOS, tokenizer.token_to_id(_BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A {_BOS} $B", special_tokens=[bos]
    )


def _save(tokenizer: Tokenizer, folder: Path) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BOS).save_pretrained(folder)
    return folder
