"""What the libraries say of a folder that they cannot load, in one line that helps."""

from __future__ import annotations

# What stands in their words -> what is the matter.
KNOWN = {
    "instantiate the backend tokenizer": "it holds no tokenizer.json, nor another tokenizer that "
    "can be read here",
    "ignore_mismatched_sizes": "its weights have other sizes than its config.json says",
    "deserializing header": "its weights are cut short, or only a pointer of Git LFS: fetch them "
    "anew",
    "argument after ** must be a mapping": "its config.json is not a mapping",
    "'list' object has no attribute": "its tokenizer_config.json is not a mapping",
}


def reason_of(error: Exception) -> str:
    """The matter in one line."""
    text = str(error).strip() or type(error).__name__
    for words, reason in KNOWN.items():
        if words in text:
            return reason
    first, _, rest = text.partition("\n")
    if first.endswith(":") and rest.strip():  # a heading
        return f"{first} {rest.strip().splitlines()[0].strip()}"
    return first
