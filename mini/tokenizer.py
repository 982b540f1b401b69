"""Byte-level CLIP tokenizer with a small vocabulary of whole words."""

from __future__ import annotations

import json
from pathlib import Path

from fastdb.storage.atomic_write import write_json, write_text

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

WORDS = """
a an the of on in at to and with by is my his her one two three no from for under over near
photo picture portrait image painting drawing close up front side view background studio room
person man woman girl boy child face people astronaut cat dog puppy kitten bird fish horse rabbit bear
cup mug coffee bottle vase toy plush car house tree star heart ball boat box chair table shoe hat bag backpack book
red blue green yellow orange purple pink black white brown grey teal cream
plain striped checkered dotted wooden beach snow grass forest street city mountain kitchen garden sky
style sks zwx ohwx shs xyz
"""
"""Words that become single tokens, including rare identifiers for subjects."""


def learn() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn byte pair encoding until each of `WORDS` is a single token; return CLIP's vocabulary and merges.

    Vocabulary: 256 bytes, 256 bytes that end a word, one entry per merge, begin, end.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    symbols = byte_symbols()
    symbols += [f"{symbol}</w>" for symbol in symbols]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # As special tokens the symbols have fixed ids, which break ties between merges. Otherwise the ids would depend on
    # the order of words in a hash map.
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        special_tokens=symbols,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    for token in [left + right for left, right in merges] + [BEGIN, END]:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary, merges


def byte_symbols() -> list[str]:
    """Return a printable character for each of the 256 bytes, in the order of CLIP's vocabulary.

    Printable Latin-1 characters represent themselves and come first; the other bytes are represented by characters from
    U+0100 on (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(0x100 + number) for number in range(others)]


def write(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Write the files of slow and fast tokenizers into a folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    from transformers import CLIPTokenizer

    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    write_json(folder / "vocab.json", vocabulary)
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    backend = CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges)).backend_tokenizer
    write_text(folder / "tokenizer.json", backend.to_str(pretty=True) + "\n")
    config = {
        "add_prefix_space": False,
        "bos_token": BEGIN,
        "do_lower_case": True,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    }
    write_json(folder / "tokenizer_config.json", config)
