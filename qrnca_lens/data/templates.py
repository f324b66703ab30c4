"""Templates that turn a question into a prompt: with four options (paper, section 3.1), or open, without any.

Per language three templates (|Q| = 3) are used for detection and one is held out: it words the
instruction in its own way, so that it measures whether a model answers the question rather than a template.
In `TEMPLATES` every option stands on its own line and every prompt ends right before the option letter; prompts of
`OPEN_TEMPLATES` name no option and end right before the answer itself.
"""

from __future__ import annotations

from dataclasses import dataclass

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Template:
    """`text` has the field {question} and, where options are shown, {a}, {b}, {c}, {d}; `key` names it in results."""

    key: str
    text: str

    def render(self, question: str, options: tuple[str, ...]) -> str:
        """The prompt: `options` in the order A, B, C, D."""
        a, b, c, d = options
        return self.text.format(question=question, a=a, b=b, c=c, d=d)

    def render_open(self, question: str) -> str:
        """The prompt of an open template."""
        return self.text.format(question=question)


@dataclass(frozen=True)
class TemplateSet:
    """The templates of one language: three for detection, one held out."""

    detection: tuple[Template, Template, Template]
    held_out: Template


def _four(language: str, one: str, two: str, three: str, held_out: str) -> TemplateSet:
    keys = (f"{language}-1", f"{language}-2", f"{language}-3")
    first, second, third = (Template(key, text) for key, text in zip(keys, (one, two, three), strict=True))
    return TemplateSet((first, second, third), Template(f"{language}-held-out", held_out))


def _open(language: str, one: str, two: str, three: str, held_out: str) -> TemplateSet:
    return _four(f"{language}-open", *(text.replace("{q}", "{question}") for text in (one, two, three, held_out)))


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

OPEN_TEMPLATES: dict[str, TemplateSet] = {
    "en": _open(
        "en",
        "Question: {q}\nAnswer:",
        "Answer the question.\n{q}\nThe correct answer is",
        "Q: {q}\nA short answer:",
        "Here is a question: {q}\nThe answer to it is",
    ),
    "ar": _open(
        "ar",
        "السؤال: {q}\nالجواب:",
        "أجب عن السؤال.\n{q}\nالجواب الصحيح هو",
        "سؤال: {q}\nجواب قصير:",
        "إليك سؤالا: {q}\nوجوابه هو",
    ),
    "fr": _open(
        "fr",
        "Question : {q}\nRéponse :",
        "Répondez à la question.\n{q}\nLa bonne réponse est",
        "Q : {q}\nUne réponse courte :",
        "Voici une question : {q}\nSa réponse est",
    ),
    "ja": _open(
        "ja",
        "質問: {q}\n答え:",
        "質問に答えてください。\n{q}\n正しい答えは",
        "問: {q}\n短い答え:",
        "次の質問があります: {q}\nその答えは",
    ),
    "ru": _open(
        "ru",
        "Вопрос: {q}\nОтвет:",
        "Ответьте на вопрос.\n{q}\nПравильный ответ:",
        "В: {q}\nКраткий ответ:",
        "Вот вопрос: {q}\nОтвет на него:",
    ),
    "zh": _open(
        "zh",
        "问题: {q}\n答案:",
        "请回答问题。\n{q}\n正确的答案是",
        "问: {q}\n简短的答案:",
        "这里有一个问题: {q}\n它的答案是",
    ),
}
