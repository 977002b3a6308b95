import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus import sentences as sentences_lib
from bert_jax.corpus.sentences import RULES, newer_rules, normalized, rules_of, split_sentences


def test_abbreviations_and_quotes():
    text = 'Mr. Smith of the U.S. Navy left at 5 p.m. sharp. "Why?" asked Dr. Jones. Nobody knew.'
    assert split_sentences([text], "en") == [
        "Mr. Smith of the U.S. Navy left at 5 p.m. sharp.",
        '"Why?" asked Dr. Jones.',
        "Nobody knew.",
    ]


def test_a_sentence_ends_with_its_paragraph():
    assert split_sentences(["No full stop", "Another. Line"], "en") == ["No full stop", "Another.", "Line"]


def test_long_paragraphs_without_spaces_take_no_hours():
    """At once, these 400,000 characters would take minutes; the same sentences as of a short paragraph."""
    sentences = ["他走了。", "「你呢？」", "我不知道这是什么（可以。看看）！", "No。"]
    assert split_sentences(["".join(sentences) * 14_000], "zh") == sentences * 14_000
    unbroken = "字" * 20_000 + "。"
    assert split_sentences([unbroken + "走。"], "zh") == [unbroken, "走。"]


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u2028"])
def test_a_panic_of_the_splitter_loses_nothing(space):
    """sentencex 1.0.32 has one at the first of these sentences."""
    text = f"Plan A{space}. Then\u00a0another. Last."
    assert split_sentences([text], "en") == [f"Plan A{space}.", "Then\u00a0another.", "Last."]


def test_other_scripts():
    assert split_sentences(["今天很好。你呢？"], "zh") == ["今天很好。", "你呢？"]
    assert split_sentences(["यह पहला है। यह दूसरा है।"], "hi") == ["यह पहला है।", "यह दूसरा है।"]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=4))
def test_no_character_but_white_space_is_lost(paragraphs):
    sentences = split_sentences(paragraphs, "en")
    assert "".join("".join(sentences).split()) == "".join("".join(paragraphs).split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(st.sampled_from('他走了。！？「」（） \t\u3000.ab"“”'), max_size=80))
def test_no_character_of_a_long_paragraph_is_lost(paragraph):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences_lib, "LONG", 8)
        found = split_sentences([paragraph], "zh")
    assert "".join("".join(found).split()) == "".join(paragraph.split())


# What some languages have of their own: abbreviations, ordinal numbers, question marks.
MARKS = """
Am 3. Mai kam z. B. Dr. Meier. Gut. Hr. Kunz.
M. Dupont vit av. Foch. Oui. etc. Mme. Roy. U.S. Mr. Smith. Ltd. Co. No. 5. e.g. This. vs. It
El Sr. López vive. La Sra. Ruiz. pág. 3. Il sig. Rossi. dott. Bianchi ecc. Poi. Av. Brasil
Он жил в г. Москве. И т. д. Всё. ул. Мира. Вул. Мира. м. Київ. див. т. д. ім. Лесі
Dhr. Jansen. bijv. Zo. Prof. dr. Kuipers. np. Jan. prof. Nowak. ul. Mokotowska tzn. tak. godz. 5
esim. Hra. Virtanen. ks. 3. luku. f.eks. Hr. Jensen. bl.a. ca. 3. maj. napr. p. Novák. 3. mája
κ. Γιώργος. π.χ. αυτό; Ναι. Բարեւ։ Ինչպես ես։ Լավ. ը
"""


def test_the_rules_that_are_named_are_those_in_use():
    for code, rules in RULES.items():
        assert sentencex_of(code) == sentencex_of(rules), (code, rules)
    english = sentencex_of("en")
    assert all(sentencex_of(code) == english for code in ("zh", "ko", "th", "km", "id", "tr", "vi", "he"))
    assert sum(sentencex_of(code) != english for code in RULES) == len(RULES) - 1


def sentencex_of(code):
    return [sentencex.segment(code, line) for line in MARKS.splitlines()]


def test_codes_in_other_spellings():
    text = ["Am 3. Mai kam Dr. Meier."]
    assert split_sentences(text, "de") == text
    assert split_sentences(text, "de-CH") == text
    assert split_sentences(text, "de_DE") == text
    assert split_sentences(text, "DE") == text
    assert [normalized(code) for code in ("pt_BR", "zh-Hant-TW", "be-tarask")] == ["pt-br", "zh", "be"]


def test_rules_are_described():
    assert rules_of("de") == "de: rules of de"
    assert rules_of("de-CH") == "de-CH: rules of de (sentencex has none of de-ch)"
    assert rules_of("zh") == "zh: rules of en (sentencex has none of zh)"
    assert rules_of("km") == "km: rules of en (sentencex has none of km), and behind ។ and ៕"


def test_text_without_spaces():
    assert split_sentences(["今日はいい天気です。散歩に行こう！「はい。」"], "ja") == [
        "今日はいい天気です。", "散歩に行こう！", "「はい。」",
    ]  # fmt: skip
    assert split_sentences(["他说：“走吧！”我们走了。真的吗？"], "zh")[-1] == "真的吗？"
    assert split_sentences(["สวัสดีครับ ผมใช้ Linux 6.1 อยู่ ขอบคุณ"], "th") == [
        "สวัสดีครับ", "ผมใช้ Linux 6.1 อยู่", "ขอบคุณ",
    ]  # fmt: skip
    assert split_sentences(["ສະບາຍດີ ຂ້ອຍສະບາຍດີ"], "lo") == ["ສະບາຍດີ", "ຂ້ອຍສະບາຍດີ"]
    assert split_sentences(["ខ្ញុំទៅ។ អ្នកមក។គាត់"], "km") == ["ខ្ញុំទៅ។", "អ្នកមក។", "គាត់"]
    assert split_sentences(["ကျွန်တော်သွား။ သူလာ။"], "my") == ["ကျွန်တော်သွား။", "သူလာ။"]
    assert split_sentences(["བཀྲ་ཤིས། བདེ་ལེགས།"], "bo") == ["བཀྲ་ཤིས།", "བདེ་ལེགས།"]


def test_only_rules_that_changed_enter_the_key():
    assert [newer_rules(code) for code in ("en", "de", "zh", "pt-br", "gsw")] == [""] * 5
    assert newer_rules("th") == "th at spaces between Thai letters"
    assert newer_rules("DE") == "de"
