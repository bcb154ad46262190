"""Questions whose answers a program can check: nine kinds, at which small models differ.

    kind ──▶ every question of that kind ──draw──▶ questions in random order
                                                       │
                           an answer's first line ─────┴──▶ quality 0 or 1

How an answer is worded is left to the model: "Paris", "It's Paris." and "The capital of France is
Paris" are all right. Each question knows the possible answers of its kind, say all capitals.

The first line of an answer must mention a right answer and no possible wrong one, so
that hedging earns nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations, product

WORD = re.compile(r"[a-z]+|\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, the answers that are right, and all that its kind of answer could be."""

    kind: str
    text: str
    right: frozenset[str]
    possible: frozenset[str]

    def __post_init__(self) -> None:
        assert self.right and self.right <= self.possible, self

    def quality(self, answer: str) -> float:
        """1.0 if its first line mentions what is right, and nothing wrong that was possible."""
        first_line = answer.strip().partition("\n")[0].lower()
        mentioned = self.possible.intersection(WORD.findall(first_line))
        return float(bool(mentioned) and mentioned <= self.right)


def draw(per_kind: int, rng: random.Random) -> list[Question]:
    """`per_kind` different questions of every kind, in random order.

    Raises:
        ValueError: if a kind has fewer; `per_kind_max` says how many there are.

    """
    if not 1 <= per_kind <= per_kind_max():
        raise ValueError(f"per_kind is {per_kind}; ask for 1 to {per_kind_max()} of every kind")
    drawn = [
        question
        for kind, all_of in KINDS.items()
        for question in rng.sample([_question(kind, *parts) for parts in all_of()], per_kind)
    ]
    rng.shuffle(drawn)
    return drawn


def per_kind_max() -> int:
    """How many different questions the smallest kind has."""
    return min(len(list(all_of())) for all_of in KINDS.values())


# What a kind yields: the text, the right answers, the possible ones.
Parts = tuple[str, Iterable[str], Iterable[str]]


def _question(kind: str, text: str, right: Iterable[str], possible: Iterable[str]) -> Question:
    return Question(kind=kind, text=text, right=frozenset(right), possible=frozenset(possible))


def _from_table(table: dict[str, str], forms: Iterable[str]) -> Iterator[Parts]:
    """Ask every row in every form. A row's right answers are words with spaces between them."""
    possible = " ".join(table.values()).split()
    for form, (asked, right) in product(forms, table.items()):
        yield form.format(asked), right.split(), possible


def additions() -> Iterator[Parts]:
    """Sums of two digits. The digits themselves are no possible answers: "3 + 4 = 7" is right."""
    forms = ("What is {} + {}? Answer with the number only.", "What is {} + {}?")
    for form, a, b in product(forms, range(1, 10), range(1, 10)):
        possible = {str(number) for number in range(100)} - {str(a), str(b)}
        yield form.format(a, b), [str(a + b)], possible


def capitals() -> Iterator[Parts]:
    """Countries and their capitals."""
    forms = ("What is the capital of {}? Answer with one word.", "What is the capital city of {}?")
    return _from_table(CAPITALS, forms)


def languages() -> Iterator[Parts]:
    """Countries and their languages."""
    forms = (
        "Which language is spoken in {}? Answer with one word.",
        "What is the official language of {}? Answer with one word.",
    )
    return _from_table(LANGUAGES, forms)


def plurals() -> Iterator[Parts]:
    """Regular and irregular plurals."""
    forms = ("What is the plural of {}? Answer with one word.", "What is the plural form of {}?")
    return _from_table(PLURALS, forms)


def opposites() -> Iterator[Parts]:
    """Words and their opposites."""
    forms = (
        "What is the opposite of {}? Answer with one word.",
        "What is the opposite of the word {}?",
    )
    return _from_table(OPPOSITES, forms)


def sentiments() -> Iterator[Parts]:
    """Whether a review is positive or negative."""
    forms = (
        'Is this review positive or negative? "{}." Answer with one word.',
        'Is this comment positive or negative? "{}." Answer with one word.',
    )
    rows = [(said, "positive") for said in PRAISE] + [(said, "negative") for said in BLAME]
    for form, (said, right) in product(forms, rows):
        yield form.format(said), [right], ["positive", "negative"]


def facts() -> Iterator[Parts]:
    """Plain facts, true or not."""
    forms = ("{}? Answer yes or no.", "Answer yes or no: {}?")
    rows = [(asked, "yes") for asked in TRUE] + [(asked, "no") for asked in FALSE]
    for form, (asked, right) in product(forms, rows):
        yield form.format(asked), [right], ["yes", "no"]


def first_letters() -> Iterator[Parts]:
    """A word's first letter. Not `a`, `i`, `s` and `t`: they are words, or ends of words."""
    forms = (
        "What is the first letter of the word {}? Answer with one letter.",
        'What is the first letter in the word "{}"? Answer with one letter.',
    )
    for form, word in product(forms, WORDS.split()):
        yield form.format(word), [word[0]], "bcdefghjklmnopqruvwxyz"


def readings() -> Iterator[Parts]:
    """Two people, two hats, and whose is asked for."""
    form = (
        "{0} has a {1} hat and {2} has a {3} hat. What colour is {0}'s hat? Answer with one word."
    )
    names, colours = ("Anna", "Tom", "Maria", "Peter"), ("red", "blue", "green", "yellow", "black")
    for (name, other), (colour, not_it) in product(
        permutations(names, 2), permutations(colours, 2)
    ):
        yield form.format(name, colour, other, not_it), [colour], colours


KINDS: dict[str, Callable[[], Iterator[Parts]]] = {
    "addition": additions,
    "capital": capitals,
    "fact": facts,
    "first letter": first_letters,
    "language": languages,
    "opposite": opposites,
    "plural": plurals,
    "reading": readings,
    "sentiment": sentiments,
}


def _table(rows: str) -> dict[str, str]:
    """'France paris, Italy rome' → {'France': 'paris', 'Italy': 'rome'}."""
    return dict(row.strip().split(" ", 1) for row in rows.split(","))


CAPITALS = _table(
    "France paris, Germany berlin, Italy rome, Spain madrid, Japan tokyo, Egypt cairo,"
    "Russia moscow, China beijing, Greece athens, Portugal lisbon, Austria vienna, Ireland dublin,"
    "Norway oslo, Sweden stockholm, Finland helsinki, Poland warsaw, Hungary budapest,"
    "Turkey ankara, Iran tehran, Iraq baghdad, Thailand bangkok, Vietnam hanoi, Canada ottawa,"
    "Cuba havana, Peru lima, Chile santiago, Kenya nairobi, Australia canberra,"
    "Denmark copenhagen, Belgium brussels, Ukraine kyiv kiev, Syria damascus, Nepal kathmandu"
)
LANGUAGES = _table(
    "Brazil portuguese, France french, Germany german, Mexico spanish, Japan japanese,"
    "Italy italian, Austria german, Greece greek, Sweden swedish, Poland polish, Russia russian,"
    "Argentina spanish, China chinese mandarin, Portugal portuguese, Hungary hungarian,"
    "Turkey turkish, Spain spanish, England english, Denmark danish, Finland finnish,"
    "Norway norwegian, Egypt arabic, Iran persian farsi, Vietnam vietnamese, Thailand thai,"
    "Ukraine ukrainian, Korea korean, Cuba spanish, Australia english, Bulgaria bulgarian"
)
PLURALS = _table(
    "cat cats, child children, mouse mice, foot feet, tooth teeth, man men, woman women,"
    "box boxes, city cities, leaf leaves, knife knives, goose geese, baby babies, wolf wolves,"
    "bus buses, dish dishes, lady ladies, house houses, half halves, dog dogs, tree trees,"
    "wife wives, story stories, country countries, potato potatoes, hero heroes, glass glasses,"
    "church churches, shelf shelves, berry berries"
)
OPPOSITES = _table(
    "hot cold, big small little, fast slow, tall short, happy sad unhappy, old new young,"
    "rich poor, hard soft easy, light dark heavy, full empty, open closed close shut, early late,"
    "strong weak, loud quiet soft silent, clean dirty, dry wet, deep shallow, wide narrow,"
    "high low, good bad evil, true false, day night, love hate, buy sell, win lose, push pull,"
    "up down, left right, inside outside, first last, summer winter, north south, black white,"
    "war peace, friend enemy foe"
)
PRAISE = (
    *("I loved every minute of it", "What a wonderful surprise", "Best purchase of the year"),
    *("Simply delicious", "We were delighted", "It works perfectly", "I would buy it again"),
    *("A brilliant and moving film", "The staff were so kind", "My children adore it"),
    *("Worth every penny", "An excellent hotel", "Fast delivery and great quality"),
    *("The best coffee in town", "I am very happy with it"),
)
BLAME = (
    *("The food was awful", "It broke after one day", "The staff were rude", "Never again"),
    *("I want my money back", "A boring and stupid film", "Terrible service", "A waste of time"),
    *("The room was dirty and cold", "I hated the ending", "It never worked"),
    *("The worst hotel of my life", "Far too expensive and ugly", "We were disappointed"),
    *("It arrived late and damaged",),
)
TRUE = (
    *("Is the sun a star", "Is ice made of water", "Is gold a metal", "Can birds sing"),
    *("Does a triangle have three sides", "Do plants need water", "Is honey made by bees"),
    *("Is Africa a continent", "Is the Pacific an ocean", "Is ten more than nine"),
    *("Is milk white", "Is Mars a planet", "Is a rose a flower", "Is a piano an instrument"),
    *("Is grass green",),
)
FALSE = (
    *("Is a whale a fish", "Is Paris in Germany", "Is a spider an insect", "Can dogs fly"),
    *("Is fire cold", "Is the moon bigger than the earth", "Is a tomato a stone"),
    *("Do cats lay eggs", "Is London in France", "Is snow black", "Do humans have three arms"),
    *("Can a car eat soup", "Is salt sweet", "Is a horse a bird", "Is two more than five"),
)
WORDS = (
    "lantern harbour window garden pepper rocket basket candle marble planet bridge forest camera "
    "pillow ladder button hammer orange violin castle wizard dragon monkey kitchen library "
    "mountain number paper queen river"
)
