"""The questions of examples/llm_pools, and the sums made of their answers. No model is needed."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "llm_pools"

with pytest.MonkeyPatch.context() as patch:  # its files find each other in their own folder
    patch.syspath_prepend(str(EXAMPLE))
    import questions
    import report
    from answered import Answered
    from questions import Question


def drawn(seed: int, per_kind: int = 10) -> list[Question]:
    return questions.draw(per_kind, random.Random(seed))


def of_kind(kind: str) -> list[Question]:
    return [one for one in drawn(0, questions.per_kind_max()) if one.kind == kind]


def asking(text: str) -> Question:
    """The question of that text; all there are, are looked at."""
    return next(
        questions._question(kind, *parts)
        for kind, all_of in questions.KINDS.items()
        for parts in all_of()
        if parts[0] == text
    )


def answered(question: Question, model: str, *, quality: float, took_s: float) -> Answered:
    said = f"{model} says"
    return Answered(question=question, model=model, answer=said, quality=quality, took_s=took_s)


def test_the_same_seed_draws_the_same_questions_in_the_same_order():
    """So a run can be repeated."""
    assert drawn(seed=3) == drawn(seed=3)


def test_another_seed_draws_others():
    """The seed decides, nothing else."""
    assert drawn(seed=3) != drawn(seed=4)


def test_every_kind_has_the_same_number_of_questions_and_none_comes_twice():
    """A mean over all is then a mean over kinds, and nothing is learned by heart."""
    all_drawn = drawn(0, questions.per_kind_max())
    assert len({one.text for one in all_drawn}) == len(all_drawn)
    for kind in questions.KINDS:
        assert sum(one.kind == kind for one in all_drawn) == questions.per_kind_max()


def test_kinds_come_mixed():
    """A router that learns must not see one kind after the other."""
    kinds = [one.kind for one in drawn(0, 20)]
    assert kinds != sorted(kinds)
    assert len(set(kinds[:30])) >= 7


@pytest.mark.parametrize("per_kind", [0, -1, questions.per_kind_max() + 1])
def test_more_questions_than_there_are_is_refused_with_the_limit(per_kind: int):
    """The message says how many there are."""
    with pytest.raises(ValueError, match=str(questions.per_kind_max())):
        drawn(0, per_kind)


@pytest.mark.parametrize("kind", questions.KINDS)
def test_every_right_answer_counts_however_it_is_written(kind: str):
    """Alone, in capitals, with a full stop, in a sentence, before a second line."""
    for question in of_kind(kind):
        for right in question.right:
            for answer in (right, f" {right.upper()}.", f'It is "{right}".', f"{right}\nor not"):
                assert question.quality(answer) == 1.0, (question.text, answer)


@pytest.mark.parametrize("kind", questions.KINDS)
def test_no_wrong_answer_counts_and_no_hedging(kind: str):
    """Neither alone, nor beside the right one, nor before or after it."""
    for question in of_kind(kind):
        right = min(question.right)
        for wrong in question.possible - question.right:
            for answer in (wrong, f"{right} or {wrong}", f"{wrong}? {right}!"):
                assert question.quality(answer) == 0.0, (question.text, answer)


@pytest.mark.parametrize("kind", questions.KINDS)
def test_an_answer_that_says_nothing_counts_nothing(kind: str):
    """Empty, blank, beside the point, or the question itself again."""
    for question in of_kind(kind):
        for answer in ("", " \n", "?!", "Hmm."):
            assert question.quality(answer) == 0.0


def test_a_right_answer_below_the_first_line_comes_too_late():
    """Only the first line is an answer; what follows is rambling."""
    question = asking("What is the capital of France? Answer with one word.")
    assert question.quality("I wonder.\nParis") == 0.0


def test_a_part_of_a_word_is_no_answer():
    """`Parisian` is not Paris, and 120 is not 12."""
    assert asking("What is the capital of France? Answer with one word.").quality("Parisian") == 0.0
    assert asking("What is 5 + 7?").quality("120") == 0.0


def test_the_terms_of_a_sum_may_be_repeated():
    """Models like to say the whole sum."""
    question = asking("What is 5 + 7?")
    assert question.quality("5 + 7 = 12") == 1.0
    assert question.quality("5 + 7 = 13") == 0.0


def test_the_word_that_was_asked_about_may_be_repeated():
    """So no table may have it among its possible answers; the terms of a sum are left out, too."""
    for question in drawn(0, questions.per_kind_max()):
        if question.kind in {"capital", "language", "opposite", "plural", "addition"}:
            asked = question.text.removesuffix("Answer with one word.").lower()
            assert not question.possible.intersection(questions.WORD.findall(asked)), question


def test_every_sum_is_right():
    """Reckoned again from the text."""
    for question in of_kind("addition"):
        a, b = map(int, re.findall(r"\d", question.text))
        assert question.right == {str(a + b)}


def test_every_first_letter_is_the_words_own():
    """Taken again from the text."""
    for question in of_kind("first letter"):
        word = re.search(r'word "?([a-z]+)', question.text)
        assert word and question.right == {word[1][0]}


def test_whose_hat_it_is_follows_from_the_text():
    """Read again, by another way than it was written."""
    for question in of_kind("reading"):
        colour_of = dict(re.findall(r"(\w+) has a (\w+) hat", question.text))
        name = re.search(r"colour is (\w+)'s", question.text)
        assert name and question.right == {colour_of[name[1]]}
        assert len(set(colour_of.values())) == 2


@pytest.mark.parametrize(("kind", "answers"), [("fact", ("yes", "no")), ("sentiment", ())])
def test_kinds_of_two_answers_have_as_many_of_either(kind: str, answers: tuple[str, ...]):
    """Who always says the same is right half the time."""
    rights = [right for _, right, _ in questions.KINDS[kind]()]
    for answer in answers or ("positive", "negative"):
        assert sum(list(right) == [answer] for right in rights) * 2 == len(rights)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("What is the capital city of Australia?", {"canberra"}),
        ("What is the plural form of child?", {"children"}),
        ("What is the opposite of light? Answer with one word.", {"dark", "heavy"}),
        ("What is the official language of Austria? Answer with one word.", {"german"}),
        ("Answer yes or no: Is a whale a fish?", {"no"}),
        ('Is this review positive or negative? "Never again." Answer with one word.', {"negative"}),
    ],
)
def test_some_answers_that_everyone_knows(text: str, right: set[str]):
    """The tables say what is so."""
    assert asking(text).right == right


def test_utility_is_quality_less_the_price_of_waiting():
    """Half a point for a second, here."""
    one = answered(asking("What is 5 + 7?"), "a", quality=1.0, took_s=0.2)
    assert one.utility(0.5) == pytest.approx(0.9)


def both_answer(all_asked: list[Question]) -> report.Matrix:
    """`a` is right about sums only, `b` about all else only; `b` takes twice as long."""

    def by(model: str, took_s: float) -> dict[Question, Answered]:
        return {
            one: answered(
                one, model, quality=float((one.kind == "addition") == (model == "a")), took_s=took_s
            )
            for one in all_asked
        }

    return {"a": by("a", 0.1), "b": by("b", 0.2)}


def test_the_better_model_of_a_kind_is_the_one_of_higher_utility():
    """Time decides once it is dear enough."""
    matrix = both_answer(drawn(0))
    better = report.better_models(matrix, points_per_s=0.5)
    assert better.pop("addition") == "a"
    assert set(better.values()) == {"b"}
    assert set(report.better_models(matrix, points_per_s=100.0).values()) == {"a"}


def test_quarters_are_the_first_and_the_last():
    """What lies between is learning."""
    one = answered(asking("What is 5 + 7?"), "a", quality=1.0, took_s=0.2)
    routed = [one] * 3 + [answered(one.question, "b", quality=0.0, took_s=0.1)] * 9
    first, last = report.quarters(routed)
    assert [a.model for a in first] == ["a"] * 3
    assert [a.model for a in last] == ["b"] * 3


def rows(table: str) -> dict[str, list[str]]:
    return {line[:27].strip(): line[27:].split() for line in table.splitlines()}


def test_the_tables_show_what_each_way_was_worth():
    """The router here takes `b` throughout, so its choices are worth what `b` is."""
    all_asked = drawn(0, per_kind=4)
    matrix = both_answer(all_asked)
    worth = rows(report.worth_table(matrix, [matrix["b"][one] for one in all_asked], 0.5))
    assert worth["the router's choices"] == worth["always b"]
    assert worth["always b"][:3] == ["0.89", "200", "0.789"]  # 8/9 − 0.5 · 0.2
    assert worth["always a"][:3] == ["0.11", "100", "0.061"]  # 1/9 − 0.5 · 0.1
    assert worth["either, by chance"][:3] == ["0.50", "150", "0.425"]
    assert worth["each kind's better one"][:3] == ["1.00", "189", "0.906"]
    assert worth["each question's better one"] == worth["each kind's better one"]


def test_each_question_s_better_one_is_better_than_each_kind_s():
    """Within a kind, one question may suit the one and the next the other."""
    first, second = of_kind("addition")[:2]
    others = [one for one in drawn(0, per_kind=1) if one.kind != "addition"]
    matrix = {
        model: {
            one: answered(one, model, quality=float(one in good), took_s=0.1)
            for one in (first, second, *others)
        }
        for model, good in {"a": (first, *others), "b": (second,)}.items()
    }
    worth = rows(report.worth_table(matrix, list(matrix["a"].values()), 0.0))
    assert worth["each kind's better one"][0] == "0.90"
    assert worth["each question's better one"][0] == "1.00"


def test_the_router_s_own_time_is_in_its_first_line_only():
    """What comes between asker and model costs time; which model was chosen is another matter."""
    all_asked = drawn(0, per_kind=4)
    matrix = both_answer(all_asked)
    routed = [answered(one, "b", quality=matrix["b"][one].quality, took_s=0.3) for one in all_asked]
    worth = rows(report.worth_table(matrix, routed, 0.5))
    assert worth["the router, as measured"][:3] == ["0.89", "300", "0.739"]
    assert worth["the router's choices"][:3] == ["0.89", "200", "0.789"]


def test_the_last_quarter_is_looked_at_alone():
    """A router that has learned is better there than over all."""
    all_asked = drawn(0, per_kind=4)
    matrix = both_answer(all_asked)
    routed = [matrix["a"][one] for one in all_asked[:27]] + [matrix["b"][q] for q in all_asked[27:]]
    worth = rows(report.worth_table(matrix, routed, 0.0))
    assert worth["the router, as measured"][-1] == worth["always b"][-1]
    assert worth["the router, as measured"][-2] != worth["always b"][-2]


def test_answers_that_changed_are_counted():
    """A model is asked twice; at temperature 0 it should say the same."""
    all_asked = drawn(0, per_kind=1)
    matrix = both_answer(all_asked)
    routed = [matrix["b"][one] for one in all_asked]
    assert report.others_than_before(matrix, routed) == 0
    routed[2] = Answered(question=all_asked[2], model="b", answer="else", quality=0.0, took_s=0.1)
    assert report.others_than_before(matrix, routed) == 1


def test_the_routed_table_says_who_got_what():
    """All of it `b`: right for every kind but sums."""
    all_asked = drawn(0, per_kind=4)
    matrix = both_answer(all_asked)
    routed = [matrix["b"][one] for one in all_asked]
    lines = report.routed_table(matrix, routed, points_per_s=0.5).splitlines()
    shares = {line[:27].strip(): re.findall(r"(\d+)%", line) for line in lines[1:]}
    assert set(shares["addition"]) <= {"0"}
    assert set(shares["capital"]) <= {"100"}
    assert shares.keys() == {*questions.KINDS, "all"}


def test_the_matrix_table_marks_the_better_quality():
    """A star beside it."""
    lines = report.matrix_table(both_answer(drawn(0))).splitlines()
    assert re.search(r"addition +1\.00\* +100 ms +0\.00  +200 ms", "\n".join(lines))
    assert re.search(r"capital +0\.00  +100 ms +1\.00\* +200 ms", "\n".join(lines))
