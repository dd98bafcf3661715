"""Texts that break careless code."""

HARD_TEXTS = (
    "",
    " ",
    "\t\n \r\n",
    "\x00",
    "null\x00byte",
    "\x01\x02\x1b[31mred\x1b[0m\x7f",
    "\ufeffbyte order mark",
    "שלום עולם",
    "\u202eright to left\u202c",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "e\u0301 é ﬁ ①",
    "zero\u200bwidth\u00adhyphen",
    "[SEP] [CLS] [PAD] [MASK] [UNK]",
    "<s> </s> <mask> <pad> <unk>",
    "<mask>glued[SEP]together",
    "None",
    "NaN",
    "3.14",
    "a" * 1000,
    "word " * 400,
    "!?" * 300,
    "\U0010ffff\ufffd",
    "http://example.org/?q=%F0%9F%92%A9&x=<b>",
    "I  loved   it ,   really",
)

SURROGATES = (
    ("\ud800", "\ufffd"),
    ("a\udfffb", "a\ufffdb"),
    ("\ud83d\ude00", "😀"),
    ("\ude00\ud83d", "\ufffd\ufffd"),
)
"""Text with unpaired surrogates -> how it is read."""
