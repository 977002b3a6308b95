"""Text in many scripts, which tokenizers must split as their references do."""

import random
import unicodedata

MIXED = """
the strong state naïve café über Łódź straße İstanbul Ελληνικός Привет مرحبا हिन्दी กำนี้ 한국어 tiếng Việt
東京都 日本語、です。 你好世界 ～ﾃｽﾄ～ ｶﾞｷﾞ ｆｕｌｌ ﬁne ① Ⅻ 3½ “quoted” e-mail
😀 👩\u200d👩\u200d👧 🇩🇪 👍🏽 ✈️ ﷺ
"""


def mixed_lines(count):
    """Lines with accents in both forms, CJK, control characters and emoji, some of them no words at all."""
    words = MIXED.split()
    letters = [character for character in "".join(words) if not unicodedata.combining(character)]
    pool = "".join(letters) + "\t\x00\x07\x1f\x7f\u00a0\u00ad\u200b\u200d\u3000\ufeff\ufffd Åẞŉ$…—"
    rng, lines = random.Random(0), ["", " ", "\x07", "\u200b a  b "]
    while len(lines) < count:
        parts = [
            rng.choice(words) if rng.random() < 0.6 else "".join(rng.choices(pool, k=rng.randint(1, 8)))
            for _ in range(rng.randint(0, 12))
        ]
        lines.append(unicodedata.normalize(rng.choice(("NFC", "NFD")), " ".join(parts)))
    return words, lines
