"""Seeded strings for comparing two tokenizers: whitespace, digits, emoji, contractions, scripts, controls, mixtures."""

from __future__ import annotations

import random
from collections.abc import Iterator

PIECES = [
    *("a", "the", " The", "hello", "don't", "DON'T", "we'll", "it's", "I'd've", "\u2019s", "naïve", "straße", "İ", "ﬁ"),
    *("é", "e\u0301"),
    *(" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n\n", " \n ", "\t\t ", "\u00a0"),
    *("\u2003", "\u3000", "\u200b", "\ufeff", "\x85", "\u2028"),
    *("0", "7", "42", "1234567", "3.14", "1,000", "²", "½", "Ⅷ", "٣", "१२", "\U0001d7d7", "一二三", "①"),
    *("!", "!!", "...", "{", '"}', "://", "\\n", "<|", "|>", "<|im", "#$%", "--", "—", "„“", "€", "£", "∑", "→", "©"),
    *("日本語", "中文字符", "한국어", "ไทย", "हिन्दी", "العربية", "עברית", "русский", "ελληνικά", "ქართული", "བོད"),
    *("😀", "👩‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "🏴\U000e0067\U000e0062\U000e007f", "𓀀", "𐍈"),
    *("!\x01!", "=\x7f=", "(\x06)"),
    *("\x00", "\x01", "\x07", "\x1b", "\x7f", "\x80", "\x9f", "\ufffd", "\ue000", "\U000f0000", "\u0378"),
    *('{"category": "billing"}', "def f(x):\n    return x", "https://example.com/a?b=c&d=1"),
    *("a@b.de", "C:\\temp", "snake_case", "camelCase"),
]  # fmt: skip

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\n", "<|im_end|>\n"]


def fuzz(count: int, seed: int = 0) -> Iterator[str]:
    """`count` strings without special tokens."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.7:
            text = "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
        elif kind < 0.85:
            text = "".join(chr(rng.randrange(1, 0x500)) for _ in range(rng.randint(1, 20)))
        else:
            points = (rng.randrange(1, 0x110000) for _ in range(rng.randint(1, 12)))
            text = "".join(chr(point) for point in points if not 0xD800 <= point <= 0xDFFF)
        yield text


def with_special(texts: Iterator[str], seed: int = 0) -> Iterator[str]:
    """The texts, each with special tokens put between its characters."""
    rng = random.Random(seed)
    for text in texts:
        for token in rng.choices(SPECIAL, k=rng.randint(1, 3)):
            at = rng.randint(0, len(text))
            text = text[:at] + token + text[at:]
        yield text
