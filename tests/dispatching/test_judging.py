"""Answers judged by a model, by how they agree, and the best of several given."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
from dispatch_bench import bench
from hypothesis import given
from hypothesis import strategies as st
from made_up_endpoint import FakeEndpoint, Script, failed
from router_bench import catalogue
from typer.testing import CliRunner

import fairlead.commands.outcomes.judge as commands
from fairlead.command_line import app
from fairlead.errors import InvalidOption
from infra.errors import InfraError
from infra.settings.settings import read_settings
from learners.policies.probes import ProbeOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.dispatch.judging.by_model import REPLY_TOKENS_MAX, JudgeOptions, points_of
from serve.dispatch.judging.curve import AS_SAID, fitted, from_bytes
from serve.dispatch.judging.judging import JudgingOptions
from serve.dispatch.probes import DispatchProbeOptions
from serve.dispatch.strategies.agreement import qualities
from serve.errors import AttemptFailed
from serve.routing.catalogue import Model

RICH = JudgeOptions(model="judge", share=1.0, budget_usd_per_day=1e5)
MODELS = tuple(
    Model(name=name, usd_per_1m_input_tokens=usd, usd_per_1m_output_tokens=usd, quality=quality)
    for name, usd, quality in (
        ("small", 1.0, 0.5), ("medium", 3.0, 0.7), ("large", 10.0, 0.9), ("judge", 5.0, 0.1)
    )
)  # fmt: skip
CASES = ["small", "medium", "large"]


def said(*words: str, **more) -> Script:
    return Script(words=words, **more)


def judged(pools, *, judge=RICH, judging=None, probes=None, bought=ProbeOptions(), **more):  # noqa: B008
    """A dispatcher whose judge has a pool of its own."""
    options = DispatchOptions(
        judge=judge,
        judging=judging or JudgingOptions(),
        probes=probes or DispatchProbeOptions(),
    )
    return bench(pools, models=catalogue(MODELS), options=options, probes=bought, **more)


def settle(up, seconds: float = 90.0) -> None:
    up.loop.run(asyncio.sleep(seconds))


def get(up, **ask):
    """One answer; then let what goes on in the background end."""
    ask.setdefault("allowed_models", CASES)
    got = up.get(**ask)
    settle(up)
    return got


def with_money(up) -> None:
    """Let an hour pass, in which the allowance fills."""
    settle(up, 3600.0)


def by_source(up, source: str) -> list[float]:
    return [values["quality"] for _, values in up.reports if values.get("source") == source]


# --- by a model


def test_an_answer_is_judged_after_it_was_given_and_that_is_its_feedback():
    """
    Question and answer reach the judge at the lowest priority, its number becomes the quality of
    the attempt that answered, and the trainer learns it. Nothing is learned of the judge.
    """
    with judged({"large": said("Paris"), "judge": said("8")}) as up:
        with_money(up)
        got = get(up)

        (asked,) = up.pools.endpoints("judge")["judge:1"].calls[-1:]
        texts = [message["content"] for message in asked.body["messages"]]
        assert "0123456789abcdef" in texts[1] and "Paris" in texts[1]
        assert (asked.priority, asked.body["max_tokens"]) == (3, REPLY_TOKENS_MAX)
        assert by_source(up, "judge") == [0.8]
        (ticket,) = [t.ticket for t, values in up.reports if "quality" in values]
        assert ticket == got.routed.ticket
        assert {model for model, *_ in got.story} == {"large"}
        counts = up.learn().state.counts
        assert counts["source.judge"] == 1
        up.check_account()


def test_nobody_waits_for_the_judge():
    """
    A judge that takes a minute: the answer takes as long as without one.
    """
    with judged({"large": said("a"), "judge": said("9")}, judge=JudgeOptions()) as up:
        without = get(up).ended.latency_ms
    with judged({"large": said("a"), "judge": said("9", delays_s={0: 50.0})}) as up:
        with_money(up)
        assert get(up).ended.latency_ms == without
        assert by_source(up, "judge") == [0.9]


@pytest.mark.parametrize(
    "script",
    [said("I would say good"), said("11"), said("7 of 10, or 8"), said(""), said("5", fails=failed()),
     said("5", hangs_at=0)],
)  # fmt: skip
def test_a_judge_that_gives_no_number_or_fails_says_nothing(script):
    """
    And harms nothing: the answer is whole, and reported as ever.
    """
    with judged({"large": said("a"), "judge": script}) as up:
        with_money(up)
        got = get(up)

        assert got.error is None
        assert by_source(up, "judge") == []
        up.check_account()


def test_what_judging_may_cost_in_a_day_is_never_exceeded():
    """
    Over a day with an answer every ten minutes, the judge's bills stay below the budget, and most of it is
    used.
    """
    budget_usd = 0.02
    poor = replace(RICH, budget_usd_per_day=budget_usd)
    with judged({"large": said("a"), "judge": said("8")}, judge=poor) as up:
        for _ in range(144):
            up.get(allowed_models=CASES)
            settle(up, 600.0)
        calls = up.pools.endpoints("judge")["judge:1"].calls
        cost = up.view.current.catalogue.cost_usd
        paid_usd = sum(cost("judge", call.prompt_tokens, 1) for call in calls)

    assert 0.5 * budget_usd < paid_usd <= budget_usd
    assert 10 < len(calls) < 144


def test_only_a_share_is_judged():
    """
    Draws at or above the share are not.
    """
    pools = {"large": said("a"), "judge": said("8")}
    with judged(pools, judge=replace(RICH, share=0.25), uniform=0.25) as up:
        with_money(up)
        get(up)

        assert by_source(up, "judge") == []


def test_a_light_judge_says_so():
    """
    Its weight is that of the feedback.
    """
    with judged({"large": said("a"), "judge": said("8")}, judge=replace(RICH, weight=0.5)) as up:
        with_money(up)
        get(up)

        assert [values["weight"] for _, values in up.reports if "quality" in values] == [0.5]


def test_probes_are_judged_by_it_too():
    """
    `probes.judge = "model"`: the probe's answer, not the one that was given, is what it sees.
    """
    rich = ProbeOptions(budget_usd_per_day=1e6, share_max=1.0, horizon_requests=1e9)
    by_model = DispatchProbeOptions(judge="model")
    pools = {
        "large": said("given"),
        "small": said("probed"),
        "medium": said("m"),
        "judge": said("3"),
    }
    with judged(pools, judge=replace(RICH, share=0.0), probes=by_model, bought=rich) as up:
        up.get()
        with_money(up)
        get(up, allowed_models=[])

        assert by_source(up, "judge") == [pytest.approx(0.3)]
        assert "probed" in str(up.pools.endpoints("judge")["judge:1"].calls[-1].body)


# --- its scale


@given(st.lists(st.tuples(st.integers(0, 10), st.floats(0, 1)), max_size=200))
def test_a_curve_never_falls_and_stays_between_zero_and_one(pairs):
    """
    Whatever people said of answers with so many points; and it is as near to them as points were.
    """
    curve = fitted([points for points, _ in pairs], [quality for _, quality in pairs])

    levels = np.array(curve.levels)
    assert (np.diff(levels) >= -1e-12).all() and levels.min() >= 0.0 and levels.max() <= 1.0
    assert from_bytes(curve.to_bytes()) == curve


def test_a_judge_that_is_too_kind_is_put_right():
    """
    People say 0.4 where it gives 8, and 0.9 where it gives 10: so its 8 counts 0.4.
    """
    curve = fitted([8] * 100 + [10] * 100, [0.4] * 100 + [0.9] * 100)

    assert curve.quality(8) == pytest.approx(0.42, abs=0.03)
    assert curve.quality(10) == pytest.approx(0.905, abs=0.01)
    assert curve.off_after < 0.05
    assert curve.off_before > 0.25


def test_a_judge_that_can_not_tell_is_harmless():
    """
    Where points say nothing of what people say, all points count nearly the same.
    """
    rng = np.random.default_rng(1)
    curve = fitted(rng.integers(0, 11, 5000), (rng.random(5000) < 0.6).astype(float))

    assert np.ptp(curve.levels) < 0.1


def test_the_curve_is_what_counts():
    """
    A calibrated judge's 8 is reported as what people say of its 8.
    """
    curve = fitted([8] * 100, [0.3] * 100)
    calibrated = replace(RICH, calibration=curve.to_bytes())
    with judged({"large": said("a"), "judge": said("8")}, judge=calibrated) as up:
        with_money(up)
        get(up)

        assert by_source(up, "judge") == [pytest.approx(curve.quality(8))]


@pytest.mark.parametrize(
    "bad", [b"{", b'{"levels": [0.5]}', b'{"levels": [2,2,2,2,2,2,2,2,2,2,2]}']
)
def test_a_file_that_is_no_curve_is_refused(bad):
    with pytest.raises(ValueError, match=r"curve|levels"):
        from_bytes(bad)
    assert from_bytes(b"") == AS_SAID


@pytest.mark.parametrize(
    ("reply", "points"),
    [("7", 7), (" 10\n", 10), ("Score: 6.5", 6.5), ("8/10", 8), ("**9**", 9), ("0", 0),
     ("", None), ("12", None), ("-3 or 4", None), ("seven", None), ("Ignore that. 10", None)],
)  # fmt: skip
def test_a_reply_counts_only_if_it_is_one_number(reply, points):
    assert points_of(reply) == points


# --- by agreement


@given(st.lists(st.text("ab ", max_size=6), min_size=3, max_size=6), st.randoms())
def test_qualities_by_agreement_belong_to_answers_not_to_places(answers, random):
    """
    Between 0 and 1, and the same for each answer in whatever order they are compared.
    """
    order = list(range(len(answers)))
    random.shuffle(order)

    found, shuffled = qualities(answers), qualities([answers[i] for i in order])

    assert all(one is None or 0.0 <= one <= 1.0 for one in found)
    assert shuffled == pytest.approx([found[i] for i in order], nan_ok=True) or None in found


def test_answers_of_a_fan_out_are_learned_from_by_how_they_agree():
    """
    Two say Paris, one Rome: each ticket gets its quality, from the source agreement.
    """
    pools = {"large": said("Paris"), "medium": said("Rome"), "small": said("paris.")}
    with judged(pools, judge=JudgeOptions(), judging=JudgingOptions(fan_out="agreement")) as up:
        got = get(up, fan_out=3)

        models = {event.ticket: event.model for event in got.events if hasattr(event, "ticket")}
        found = {models[t.ticket]: v["quality"] for t, v in up.reports if "quality" in v}
        assert found == {"large": 1.0, "medium": 0.0, "small": 1.0}
        assert set(by_source(up, "agreement")) == {0.0, 1.0}
        assert up.learn().state.counts["source.agreement"] == 3
        up.check_account()


@pytest.mark.parametrize(("mode", "n"), [("none", 3), ("agreement", 2)])
def test_two_answers_or_no_wish_for_it_say_nothing(mode, n):
    """
    Of two that differ either may be right.
    """
    pools = {name: said(name) for name in CASES}
    with judged(pools, judge=JudgeOptions(), judging=JudgingOptions(fan_out=mode)) as up:
        get(up, fan_out=n)

        assert not any("quality" in values for _, values in up.reports)


# --- the best of several


def test_the_answer_nearest_to_the_others_is_given():
    """
    The chosen model stands alone: another's answer is given, as the only one, with what all cost.
    """
    pools = {"large": said("Rome"), "medium": said("It is Paris"), "small": said("Paris it is")}
    with judged(pools, judge=JudgeOptions()) as up:
        got = get(up, fan_out=3, merge="agreement")

        assert got.text() == "It is Paris"
        assert (got.routed.model, got.routed.answer, got.ended.answer) == ("medium", 0, 0)
        assert sorted(model for model, *_ in got.story) == sorted(CASES)
        assert got.ended.paid_usd == pytest.approx(sum(a.cost_usd for a in got.ended.attempts))
        up.check_account()


def test_the_judge_says_which_is_best():
    """
    It is asked about each, and the one with most points is given.
    """
    pools = {"large": said("first"), "medium": said("second"), "small": said("third"),
             "judge": [FakeEndpoint("judge:1", said("5"), said("2"), said("9"))]}  # fmt: skip
    with judged(pools, judge=replace(RICH, share=0.0)) as up:
        with_money(up)
        got = get(up, fan_out=3, merge="judge")

        points = {"first": 5, "second": 2, "third": 9}
        assert got.text() == max(points, key=points.get)


def test_where_the_judge_can_not_say_agreement_does():
    """
    It has no money: the two that agree are believed.
    """
    pools = {"large": said("Rome"), "medium": said("Paris"), "small": said("Paris")}
    with judged({**pools, "judge": said("9")}, judge=replace(RICH, budget_usd_per_day=1e-9)) as up:
        assert get(up, fan_out=3, merge="judge").text() == "Paris"


def test_an_answer_that_fails_is_not_the_best_and_if_all_fail_so_does_the_request():
    """
    One of three is enough.
    """
    broken = said("a", "b", fails=failed(), fails_at=1)
    with judged(
        {"large": broken, "medium": broken, "small": said("x")}, judge=JudgeOptions()
    ) as up:
        assert get(up, fan_out=3, merge="agreement").text() == "x"
        up.check_account()
    with judged(dict.fromkeys(CASES, broken), judge=JudgeOptions()) as up:
        assert isinstance(get(up, fan_out=3, merge="agreement").error, AttemptFailed)
        up.check_account()


# --- the command


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Settings with a judge, 40 labels, and a judge that gives 8 for a cent."""
    (tmp_path / "site.toml").write_text(
        '[judge]\nmodel = "judge"\n'
        + "".join(
            f'[[models]]\nname = "{n}"\nusd_per_1m_input_tokens = 1\n' for n in ("a", "judge")
        )
    )
    line = '{"prompt": "p", "answer": "x", "quality": 0.4}\n'
    (tmp_path / "labels.ndjson").write_text(line * 40 + "\n")
    monkeypatch.setattr(commands, "_points", lambda *_: (8.0, 0.01))
    return tmp_path


def calibrate(folder, *more: str):
    names = ["labels.ndjson", "judge.json"]
    command = ["judge", "calibrate", *(str(folder / name) for name in names)]
    command += ["--settings", str(folder / "site.toml"), "--target", "127.0.0.1:1", *more]
    return CliRunner().invoke(app, command)


def test_calibrate_writes_what_people_say_of_its_points(labelled):
    """
    The file is one that the settings take, and the JSON says how far it was off.
    """
    found = calibrate(labelled, "--json")

    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert (said["labels"], said["judged"], said["off_before"]) == (40, 40, pytest.approx(0.4))
    curve = from_bytes((labelled / "judge.json").read_bytes())
    assert said["levels"] == list(curve.levels) and curve.quality(8) == pytest.approx(
        0.44, abs=0.05
    )


def test_calibrate_stops_at_what_it_may_cost(labelled):
    """
    A quarter of a dollar pays for 25 labels.
    """
    found = calibrate(labelled, "--json", "--usd-max", "0.25")

    assert json.loads(found.stdout)["judged"] == 25
    with pytest.raises(InvalidOption, match="only 10 of 40"):
        raise calibrate(labelled, "--usd-max", "0.1").exception


def test_a_bad_label_is_named_by_its_line(labelled):
    (labelled / "labels.ndjson").write_text('{"prompt": "p", "answer": "x", "quality": 2}')

    with pytest.raises(InvalidOption, match="line 1"):
        raise calibrate(labelled).exception


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[judge]\nmodel = "nobody"', "judge.model"),
        ('[probes]\njudge = "model"', "probes.judge"),
        ('[fuse]\nmodel = "nobody"', "fuse.model"),
        ('[dispatch]\nescalate_to = "nobody"', "dispatch.escalate_to"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, text, named):
    """
    A judge that is no model, and what needs one where there is none.
    """
    path = tmp_path / "site.toml"
    path.write_text(f'{text}\n[[models]]\nname = "a"\nusd_per_1m_input_tokens = 1\n')

    with pytest.raises(InfraError, match=named):
        read_settings(path)
