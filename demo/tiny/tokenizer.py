"""Make the tiny tokenizer: a byte-pair vocabulary of CLIP's kind that has the words of the tiny world whole.

Format of CLIP (Radford et al. 2021; openai/CLIP simple_tokenizer.py): the 256 byte symbols, the same ending a word
(``</w>``), the merges in their order, <|startoftext|>, <|endoftext|>. So "!" has id 0 and <|endoftext|> the highest
id, by which the text encoders find the end of a caption. Any other word falls to pieces, down to bytes.

    python -m demo.tiny.tokenizer    # writes demo/tiny/tokenizer/{vocab.json,merges.txt}, the same every time
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from demo.tiny import world
from gm.files import write_text

FOLDER = Path(__file__).parent / "tokenizer"
LARGEST = 640  # tokens, of which 514 are bytes and marks

EVERYDAY_WORDS = (
    *("and", "the", "of", "in", "with", "big", "small", "picture", "photo"),
    *("orange", "purple", "pink", "brown", "gray", "gold"),
    *("ring", "heart", "moon", "dot", "line", "diamond"),
)
START, END = "<|startoftext|>", "<|endoftext|>"

Symbols = tuple[str, ...]
Pair = tuple[str, str]


def byte_symbols() -> list[str]:
    """A printable character for each byte, printable bytes first: the alphabet of GPT-2 and CLIP."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def join(symbols: Symbols, pair: Pair) -> Symbols:
    """Every occurrence of the pair, from the left, as one symbol."""
    joined, index = [], 0
    while index < len(symbols):
        if symbols[index : index + 2] == pair:
            joined.append(pair[0] + pair[1])
            index += 2
        else:
            joined.append(symbols[index])
            index += 1
    return tuple(joined)


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """Merges of the most frequent pair first (ties: alphabetical) until every ASCII word is one symbol."""
    spelled = [(*word[:-1], word[-1] + "</w>") for word in sorted(set(words))]
    merges = []
    while any(len(symbols) > 1 for symbols in spelled):
        counts = Counter(pair for symbols in spelled for pair in pairwise(symbols))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [join(symbols, best) for symbols in spelled]
    return merges


def world_words() -> list[str]:
    """Every word that a caption of the tiny world can have."""
    captions = [
        world.caption(colour, shape, ground)
        for colour in world.COLOURS
        for shape in world.SHAPES
        for ground in world.GROUNDS
    ]
    return sorted({word for text in captions for word in text.split()})


def vocabulary(merges: Sequence[Pair]) -> dict[str, int]:
    """Token -> id."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def write_tokenizer(folder: str | Path = FOLDER) -> int:
    """Write vocab.json and merges.txt as transformers' CLIPTokenizer reads them; returns the number of tokens."""
    merges = learn_merges([*world_words(), *EVERYDAY_WORDS])
    tokens = vocabulary(merges)
    if len(tokens) > LARGEST:
        raise ValueError(f"{len(tokens)} tokens are more than {LARGEST}: leave out some of EVERYDAY_WORDS")
    write_text(Path(folder) / "vocab.json", json.dumps(tokens, ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_text(Path(folder) / "merges.txt", "\n".join(lines) + "\n")
    return len(tokens)


if __name__ == "__main__":
    print(f"{write_tokenizer()} tokens in {FOLDER}")
