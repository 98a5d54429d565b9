"""Small tokenizers of every kind that is in use, made here: name -> writer of tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mamba_export.folder.bytes_tokenizer import write_byte_tokenizer

CORPUS = [
    "In the beginning was the other wörld, the end. 日日日 本本 don't stop, it's the 1st of 22!",
    "the theatre then there  two spaces\n\ttab — naïve café ▁ end",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = sorted({letter for text in CORPUS for letter in text if letter.isascii()} - set(" \n\t"))


def _bytes(folder: Path) -> None:
    write_byte_tokenizer(folder)


def _byte_level_bpe(folder: Path, *, in_sequence: bool = False) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if in_sequence:
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["    é"])  # not special: it is text
    tokenizer.save(str(folder / "tokenizer.json"))


def _byte_level_bpe_in_a_sequence(folder: Path) -> None:
    _byte_level_bpe(folder, in_sequence=True)


def _metaspace_unigram(folder: Path, *, byte_fallback: bool = False) -> None:
    """As T5's; with byte fallback as those converted from newer SentencePiece models."""
    pieces = ["<unk>", "</s>", *(BYTES if byte_fallback else [])]
    pieces += ["▁", "▁▁", "▁the", "▁there", "the", "▁a", "▁be", "ing", "日本", *LETTERS]
    vocab = [(piece, -float(index)) for index, piece in enumerate(pieces)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _metaspace_unigram_of_bytes(folder: Path) -> None:
    _metaspace_unigram(folder, byte_fallback=True)


def _sentencepiece_bpe(folder: Path) -> None:
    """As Llama's: pieces with byte fallback, whose decoder is no map from token to bytes."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, "▁", "▁▁", "▁t", "th", "▁th", "日"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("▁", "t"), ("t", "h"), ("▁t", "h")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _word_piece(folder: Path) -> None:
    """As BERT's."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", *LETTERS, *[f"##{letter}" for letter in LETTERS]]
    pieces += ["the", "##re", "in", "don", "be", "##ing", "日", "本"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(folder / "tokenizer.json"))


def _bpe_of_word_ends(folder: Path) -> None:
    """As the first GPT's: the last token of a word ends in ``</w>``."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def _words(folder: Path) -> None:
    """Without a decoder: tokens are joined by spaces."""
    words = ["<unk>", *sorted({word for text in CORPUS for word in text.split()})]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


KINDS: dict[str, Callable[[Path], None]] = {
    "bytes": _bytes,
    "byte-level BPE": _byte_level_bpe,
    "byte-level BPE in a sequence": _byte_level_bpe_in_a_sequence,
    "Metaspace Unigram": _metaspace_unigram,
    "Metaspace Unigram with byte fallback": _metaspace_unigram_of_bytes,
    "SentencePiece BPE with byte fallback": _sentencepiece_bpe,
    "WordPiece": _word_piece,
    "BPE of word ends": _bpe_of_word_ends,
    "words": _words,
}
