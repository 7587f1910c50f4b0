"""Secrets out of texts: passwords in database URLs and connection strings, and API keys."""

from __future__ import annotations

import re

_URL = re.compile(r"(\w+://[^:/?#\s@]*):\S*@")
_WORD = re.compile(r"(password|passwd|pwd)\s*=\s*('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)
_KEY = re.compile(r"dh_([a-z0-9]{12})_[A-Za-z0-9_-]{20,}")
# Whatever holds none of these holds no secret; most lines of a log do not.
_HINTS = ("://", "dh_")
_WORDS = ("passw", "pwd")


def redact(text: str) -> str:
    """`text` without them; where a password's end is in doubt, rather too much is hidden."""
    if any(hint in text for hint in _HINTS):
        text = _KEY.sub(r"dh_\1_***", _URL.sub(r"\1:***@", text))
    lower = text.lower()
    if any(word in lower for word in _WORDS):
        text = _WORD.sub(r"\1=***", text)
    return text
