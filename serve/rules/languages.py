"""The language of a text: by its script, and in Latin script by its commonest words.

    first 400 characters ─▶ letters of another script? ─▶ its language
                                   └─ else words that are common in one ─▶ the most different ones

It says "" rather than guess: of a few words without a common one nothing is known. A rule needs
to tell apart the languages that a site's users write, not all there are.
"""

from __future__ import annotations

import re

LOOKED_AT = 400  # characters: some seventy words
SHARE_MIN = 0.3  # of the letters, for a script that is not Latin
HITS_MIN = 2

_COMMON = {
    "en": "the of and to in is that for it with as was are this be not you have from what how "
    "write explain which an or can my do does please give me your following",
    "de": "der die das und ist nicht ein eine zu den mit von für auf im dem sich auch wie ich "
    "wir sie bitte was warum kannst mir einen sind oder als bei aus schreibe erkläre",
    "fr": "le la les des et est une dans pour que qui sur pas au avec vous nous ce cette du "
    "comment je quelle mon sont plus écris expliquez explique",
    "es": "el la los las de que y en una por con para es no se como del más qué cómo mi un "
    "escribe explica cuál son este esta",
    "it": "il lo la gli di che è un una per con non sono del della come questo scrivi cosa "
    "perché mi le dei nel spiega",
    "pt": "o os as de que e em uma para com não é do da no na por mais como um você escreva "
    "explique meu são qual",
    "nl": "de het een en van is dat niet op te zijn voor met die ik aan er hoe wat mijn schrijf "
    "waarom kan je",
    "pl": "i w na z że się do nie to jest jak o po co dla od czy mi napisz proszę są dlaczego",
    "sv": "och att det är som en på av för inte med den har till jag hur vad skriv kan varför",
    "da": "og at det er som en på af for ikke med den har til jeg hvordan hvad skriv kan hvorfor",
    "tr": "ve bir bu için ile ne mi çok olarak gibi nasıl bana lütfen nedir yaz",
    "cs": "a v na se je že to s z do o jak co pro ale jsem prosím napiš proč",
    "ro": "și în de la cu care este nu pe din o un ce cum scrie pentru",
    "vi": "và của là có không cho được trong một những người tôi hãy viết",
    "id": "yang dan di untuk dengan ini itu adalah tidak dari apa bagaimana tolong saya",
}
LATIN = tuple(_COMMON)
_LANGUAGES_OF: dict[str, tuple[int, ...]] = {}
for _at, _words in enumerate(_COMMON.values()):
    for _one in _words.split():
        _LANGUAGES_OF[_one] = (*_LANGUAGES_OF.get(_one, ()), _at)

# By range of letters: the language, or of several those that a letter of their own tells apart.
_SCRIPTS = (
    ("ja", "ぁ-ヿ"),
    ("ko", "가-힣ᄀ-ᇿ"),
    ("zh", "一-鿿"),
    ("cyrillic", "Ѐ-ӿ"),
    ("arabic", "؀-ۿ"),
    ("el", "Ͱ-Ͽ"),
    ("he", "֐-׿"),
    ("hi", "ऀ-ॿ"),
    ("bn", "ঀ-৿"),
    ("ta", "஀-௿"),
    ("th", "฀-๿"),
)
_LETTERS = [(name, re.compile(f"[{letters}]")) for name, letters in _SCRIPTS]
_SEVERAL = {"cyrillic": ("ru", "uk", "іїєґ"), "arabic": ("ar", "fa", "پچژگ")}
LANGUAGES = (
    *LATIN,
    *(one for name, _ in _SCRIPTS for one in _SEVERAL.get(name, (name,))[:2]),
)


def language_of(text: str) -> str:
    """Two letters (ISO 639-1); "" where it is not known.

    >>> language_of("Wie schreibe ich das auf Deutsch?"), language_of("Как дела?"), language_of("4")
    ('de', 'ru', '')
    """
    start = text[:LOOKED_AT].lower()
    return (not start.isascii() and _by_script(start)) or _by_words(start)


def _by_script(start: str) -> str:
    n_letters = sum(map(str.isalpha, start))
    for name, letters in _LETTERS:
        n = len(letters.findall(start))
        if n and n >= SHARE_MIN * n_letters:
            if name not in _SEVERAL:
                return name
            usual, other, own = _SEVERAL[name]
            return other if any(letter in start for letter in own) else usual
    return ""


def _by_words(start: str) -> str:
    hits = [0] * len(LATIN)
    for one in _LANGUAGES_OF.keys() & start.split():
        for at in _LANGUAGES_OF[one]:
            hits[at] += 1
    most = max(hits)
    best = [at for at, n in enumerate(hits) if n == most]
    return LATIN[best[0]] if most >= HITS_MIN and len(best) == 1 else ""
