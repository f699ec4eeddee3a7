"""Scripts of texts."""

from __future__ import annotations

import pytest

from orpo_dist.audit.text_rules import SCRIPTS, main_scripts


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Vingt lettres ou plus, sûrement", "Latin"),
        ("Это предложение на русском языке, и word", "Cyrillic"),
        ("这是一个足够长的中文句子，用来测试脚本识别功能是否正确", "Han"),
        ("これはひらがながおおいにほんごのぶんしょうですよね", "Kana"),
        ("हिन्दी में एक पर्याप्त लंबा वाक्य यहाँ लिखा है", "Devanagari"),
        ("هذه جملة عربية طويلة بما يكفي للاختبار", "Arabic"),
        ("too short", "no letters"),
        ("1234567890 !!! 1234567890 +++ 1234567890 🙂🙂🙂", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert SCRIPTS[main_scripts([text])[0]] == script
