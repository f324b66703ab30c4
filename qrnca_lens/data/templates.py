"""Instruction templates that turn a question and four options into a prompt (paper, section 3.1).

Per language three templates (|Q| = 3) are used for detection and one is held out: it words the
instruction in its own way, so that it measures whether a model answers the question rather than a template.
Every option stands on its own line and every prompt ends right before the option letter.
"""

from __future__ import annotations

from dataclasses import dataclass

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Template:
    """`text` has the fields {question}, {a}, {b}, {c}, {d}; `key` names it in results."""

    key: str
    text: str

    def render(self, question: str, options: tuple[str, ...]) -> str:
        """The prompt: `options` in the order A, B, C, D."""
        a, b, c, d = options
        return self.text.format(question=question, a=a, b=b, c=c, d=d)


@dataclass(frozen=True)
class TemplateSet:
    """The templates of one language: three for detection, one held out."""

    detection: tuple[Template, Template, Template]
    held_out: Template


def _four(language: str, one: str, two: str, three: str, held_out: str) -> TemplateSet:
    keys = (f"{language}-1", f"{language}-2", f"{language}-3")
    first, second, third = (Template(key, text) for key, text in zip(keys, (one, two, three), strict=True))
    return TemplateSet((first, second, third), Template(f"{language}-held-out", held_out))


_DOTS = "A. {a}\nB. {b}\nC. {c}\nD. {d}\n"
_BRACKETS = "(A) {a}\n(B) {b}\n(C) {c}\n(D) {d}\n"
_CLOSED = "A) {a}\nB) {b}\nC) {c}\nD) {d}\n"

TEMPLATES: dict[str, TemplateSet] = {
    "en": _four(
        "en",
        "Question: {question}\n" + _DOTS + "Answer:",
        "Choose the correct option.\n{question}\n" + _BRACKETS + "The correct option is",
        "{question}\nOptions:\n" + _CLOSED + "The right letter is",
        "Question: {question}\nOptions:\n" + _BRACKETS + "The correct answer is",
    ),
    "ar": _four(
        "ar",
        "السؤال: {question}\n" + _DOTS + "الجواب:",
        "اختر الخيار الصحيح.\n{question}\n" + _BRACKETS + "الخيار الصحيح هو",
        "{question}\nالخيارات:\n" + _CLOSED + "الحرف الصحيح هو",
        "السؤال: {question}\nالخيارات:\n" + _BRACKETS + "الجواب الصحيح هو",
    ),
    "fr": _four(
        "fr",
        "Question : {question}\n" + _DOTS + "Réponse :",
        "Choisissez la bonne option.\n{question}\n" + _BRACKETS + "La bonne option est",
        "{question}\nOptions :\n" + _CLOSED + "La bonne lettre est",
        "Question : {question}\nOptions :\n" + _BRACKETS + "La bonne réponse est",
    ),
    "ja": _four(
        "ja",
        "質問: {question}\n" + _DOTS + "答え:",
        "正しい選択肢を選んでください。\n{question}\n" + _BRACKETS + "正しい選択肢は",
        "{question}\n選択肢:\n" + _CLOSED + "正しい記号は",
        "質問: {question}\n選択肢:\n" + _BRACKETS + "正しい答えは",
    ),
    "ru": _four(
        "ru",
        "Вопрос: {question}\n" + _DOTS + "Ответ:",
        "Выберите правильный вариант.\n{question}\n" + _BRACKETS + "Правильный вариант:",
        "{question}\nВарианты:\n" + _CLOSED + "Правильная буква:",
        "Вопрос: {question}\nВарианты:\n" + _BRACKETS + "Правильный ответ:",
    ),
    "zh": _four(
        "zh",
        "问题: {question}\n" + _DOTS + "答案:",
        "请选择正确的选项。\n{question}\n" + _BRACKETS + "正确的选项是",
        "{question}\n选项:\n" + _CLOSED + "正确的字母是",
        "问题: {question}\n选项:\n" + _BRACKETS + "正确的答案是",
    ),
}
