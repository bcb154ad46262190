"""`infra.emulator.engine` as machine code, for many replicas at once: the same bits.

    take      a batch's requests, each to the less loaded of two replicas of its pool
    advance   replicas to a time; who was answered, in the order of replicas and then of time
    look      what replicas report of themselves

The engine's own file says what happens and why; this is that, with its names, on arrays: a row of
`reals` and `ints` is a replica, one of `reals_of` and `ints_of` a request; `counts` has latencies
by replica, kind and bucket. A request is in one list at a time, linked by `NEXT` and `PREVIOUS`.
Sums are made in the engine's order: tests compare bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import compiled, inlined

# reals: of a replica. The first nine change; then what it can do; then sums for `LoadGauge`.
NOW, BEGAN, BOUNDARY, READY, RUN_BEGINS, RUN_FIRST, RUN_STEP, BUSY, PREFILL = range(9)
FIXED, EXPERTS, EXPERT_SHARE, PER_SEQUENCE, PER_CONTEXT, PER_PROMPT = range(9, 15)
REQUEST, REQUEST_PER_PROMPT, CONTENTION, KV_ADMITS = range(15, 19)
WORK = 19  # eight rates of `WorkRates`, as it declares them
SUMS = 27  # five
LAST_END, PER_OTHER, N_F = 32, 33, 34
# ints: of a replica.
RUN_K, RUN_PROMPT, PARTIAL, N, CONTEXT, KV, ITERATION, TOKENS = range(8)
SUBMITTED, KNOWN, N_RUNNING = range(8, 11)
IN_FLIGHT, PREFILL_MAX, KV_MAX, SEQUENCES_MAX, CONTEXT_MAX = range(11, 16)
HEADS = 16  # first and last of the front end, the queue, those running, those answered
FRONT, QUEUE, RUNNING, ANSWERED = (HEADS + 2 * i for i in range(4))
HELD_MAX, N_I = 24, 28  # by priority
# reals_of and ints_of: of a request.
READY_AT, ARRIVED, FIRST, ENDED = range(4)
PROMPT, OUTPUT, LEFT, MADE, STATE, FINISHES, PRIORITY, NUMBER, NEXT, PREVIOUS, ASKED = range(11)
N_SF, N_SI = 4, 11
WAITING, PREFILLING, DECODING = range(3)
# `look`: gauges of a replica.
L_NOW, L_QUEUED, L_RUNNING, L_KV, L_TOKENS, L_ITERATIONS, L_WAITING, L_BUSY, L_PREFILL = range(9)
N_L = 9
NOBODY, TTFT, TPOT = -1, 0, 1

FLOATS, INTS = "float64[:,::1]", "int64[:,::1]"
VECTOR, NUMBERS = "float64[::1]", "int64[::1]"
STATE_TYPES = (FLOATS, INTS, FLOATS, INTS, "int64[:,:,::1]", VECTOR)


@inlined
def _link(ints: Any, ints_of: Any, r: Any, of: Any, before: Any, s: Any) -> Any:
    """Into a list, behind one of it, or at its head."""
    after = ints[r, of] if before == NOBODY else ints_of[before, NEXT]
    ints_of[s, PREVIOUS], ints_of[s, NEXT] = before, after
    if before == NOBODY:
        ints[r, of] = s
    else:
        ints_of[before, NEXT] = s
    if after == NOBODY:
        ints[r, of + 1] = s
    else:
        ints_of[after, PREVIOUS] = s


@inlined
def _remove(ints: Any, ints_of: Any, r: Any, of: Any, s: Any) -> Any:
    before, after = ints_of[s, PREVIOUS], ints_of[s, NEXT]
    if before == NOBODY:
        ints[r, of] = after
    else:
        ints_of[before, NEXT] = after
    if after == NOBODY:
        ints[r, of + 1] = before
    else:
        ints_of[after, PREVIOUS] = before


@inlined
def _queue(ints: Any, ints_of: Any, r: Any, s: Any) -> Any:
    """In its place by priority, then arrival; seldom before the last."""
    at, priority, number = ints[r, QUEUE + 1], ints_of[s, PRIORITY], ints_of[s, NUMBER]
    while at != NOBODY and (ints_of[at, PRIORITY], ints_of[at, NUMBER]) > (priority, number):
        at = ints_of[at, PREVIOUS]
    _link(ints, ints_of, r, QUEUE, at, s)


@inlined
def _end(reals: Any, r: Any, k: Any) -> Any:
    return reals[r, RUN_BEGINS] + (reals[r, RUN_FIRST] * k + reals[r, RUN_STEP] * (k * (k - 1) / 2))


@inlined
def _reach(reals: Any, r: Any, time_s: Any) -> Any:
    x, b = time_s - reals[r, RUN_BEGINS], reals[r, RUN_FIRST] - reals[r, RUN_STEP] / 2
    k = max(1, math.ceil(2 * x / (b + math.sqrt(b * b + 2 * reals[r, RUN_STEP] * x))))
    while _end(reals, r, k) < time_s:
        k += 1
    while k > 1 and _end(reals, r, k - 1) >= time_s:
        k -= 1
    return k


@inlined
def _done(reals: Any, ints: Any, r: Any) -> Any:
    if ints[r, RUN_K] <= 1 or reals[r, NOW] <= reals[r, RUN_BEGINS]:
        return 0
    k = _reach(reals, r, reals[r, NOW])
    return k if _end(reals, r, k) == reals[r, NOW] else k - 1


@inlined
def _fits(reals: Any, ints: Any, ints_of: Any, r: Any, s: Any) -> Any:
    if ints[r, N_RUNNING] == 0:
        return True
    needs = ints[r, KV] + ints[r, N] + ints_of[s, PROMPT] + ints_of[s, MADE]
    return ints[r, N_RUNNING] < ints[r, SEQUENCES_MAX] and needs <= reals[r, KV_ADMITS]


@inlined
def _stop_for_arrival(reals: Any, ints: Any, reals_of: Any, ints_of: Any, r: Any) -> Any:
    first, found = ints[r, QUEUE], NOBODY
    best = np.iinfo(np.int64).max if first == NOBODY else ints_of[first, PRIORITY]
    s = ints[r, FRONT]
    while s != NOBODY:
        if ints_of[s, PRIORITY] < best:
            best = ints_of[s, PRIORITY]
            if _fits(reals, ints, ints_of, r, s):
                found = s
                break
        s = ints_of[s, NEXT]
    if found != NOBODY:
        time_s, k = max(reals_of[found, READY_AT], reals[r, NOW]), ints[r, RUN_K]
        if k > 1 and _end(reals, r, k - 1) >= time_s:
            ints[r, RUN_K] = _reach(reals, r, time_s)


@inlined
def _release(ints: Any, ints_of: Any, r: Any, s: Any) -> Any:
    _remove(ints, ints_of, r, RUNNING, s)
    ints[r, N_RUNNING] -= 1
    held = ints_of[s, PROMPT] + ints_of[s, MADE]
    if ints_of[s, STATE] == DECODING:
        ints_of[s, MADE] = ints_of[s, OUTPUT] - (ints_of[s, FINISHES] - ints[r, ITERATION])
        held = ints_of[s, PROMPT] + ints_of[s, MADE] - 1
        ints[r, CONTEXT] -= held
        ints[r, N] -= 1
    elif ints[r, PARTIAL] == s:
        ints[r, PARTIAL] = NOBODY
    ints[r, KV] -= held


@inlined
def _make_room(ints: Any, ints_of: Any, r: Any) -> Any:
    while ints[r, KV] + ints[r, N] > ints[r, KV_MAX]:
        goes = s = ints[r, RUNNING + 1]
        while s != NOBODY:
            if ints_of[s, PRIORITY] > ints_of[goes, PRIORITY]:
                goes = s
            s = ints_of[s, PREVIOUS]
        _release(ints, ints_of, r, goes)
        ints_of[goes, STATE] = WAITING
        ints_of[goes, LEFT] = ints_of[goes, PROMPT] + ints_of[goes, MADE]
        _queue(ints, ints_of, r, goes)


@inlined
def _chunk(reals: Any, ints: Any, ints_of: Any, r: Any, admits: Any) -> Any:
    left, s = ints[r, PREFILL_MAX], ints[r, PARTIAL]
    ints[r, PARTIAL] = NOBODY
    while left > 0:
        if s == NOBODY:
            s = ints[r, QUEUE] if admits else NOBODY
            if s == NOBODY or not _fits(reals, ints, ints_of, r, s):
                break
            _remove(ints, ints_of, r, QUEUE, s)
            ints_of[s, STATE] = PREFILLING
            _link(ints, ints_of, r, RUNNING, ints[r, RUNNING + 1], s)
            ints[r, N_RUNNING] += 1
            ints[r, KV] += ints_of[s, PROMPT] + ints_of[s, MADE]
        taken = min(left, ints_of[s, LEFT])
        left -= taken
        ints_of[s, LEFT] -= taken
        if ints_of[s, LEFT] > 0:
            ints[r, PARTIAL] = s
        s = NOBODY
    return ints[r, PREFILL_MAX] - left


@inlined
def _arrive(reals: Any, ints: Any, reals_of: Any, ints_of: Any, r: Any, to_s: Any) -> Any:
    """Queue who is ready at the boundary; whether there is anything to do before `to_s`."""
    if ints[r, N_RUNNING] == 0 and ints[r, QUEUE] == NOBODY:
        first = ints[r, FRONT]
        if first == NOBODY or reals_of[first, READY_AT] >= to_s:
            return False
        reals[r, BOUNDARY] = max(reals[r, BOUNDARY], reals_of[first, READY_AT])
    s = ints[r, FRONT]
    while s != NOBODY and reals_of[s, READY_AT] <= reals[r, BOUNDARY]:
        _remove(ints, ints_of, r, FRONT, s)
        _queue(ints, ints_of, r, s)
        s = ints[r, FRONT]
    return True


@inlined
def _compose(reals: Any, ints: Any, reals_of: Any, ints_of: Any, r: Any) -> Any:
    """Plan the run that begins at the boundary."""
    full = ints[r, KV] + ints[r, N] > ints[r, KV_MAX]
    if full:
        _make_room(ints, ints_of, r)
    prompt = 0
    if ints[r, QUEUE] != NOBODY or ints[r, PARTIAL] != NOBODY:
        prompt = _chunk(reals, ints, ints_of, r, not full)
    reals[r, RUN_BEGINS], ints[r, RUN_PROMPT] = reals[r, BOUNDARY], prompt
    n, s, experts_s = ints[r, N], ints[r, RUNNING], 0.0
    if reals[r, EXPERTS] != 0.0:
        unused = math.pow(1.0 - reals[r, EXPERT_SHARE], float(n + prompt))
        experts_s = reals[r, EXPERTS] * (1.0 - unused)
    reals[r, RUN_FIRST] = (  # as `Performance.iteration_s` adds it up
        reals[r, FIXED] + experts_s + reals[r, PER_SEQUENCE] * n
        + reals[r, PER_CONTEXT] * ints[r, CONTEXT] + reals[r, PER_PROMPT] * prompt
    )  # fmt: skip
    if prompt:
        reals[r, RUN_STEP], ints[r, RUN_K] = 0.0, 1
        return
    reals[r, RUN_STEP] = n * reals[r, PER_CONTEXT]
    k = (ints[r, KV_MAX] - ints[r, KV]) // n
    while s != NOBODY:
        if ints_of[s, STATE] == DECODING:
            k = min(k, ints_of[s, FINISHES] - ints[r, ITERATION])
        s = ints_of[s, NEXT]
    first = ints[r, QUEUE]
    if full and first != NOBODY and _fits(reals, ints, ints_of, r, first):
        k = 1
    ints[r, RUN_K] = k
    if ints[r, FRONT] != NOBODY:
        _stop_for_arrival(reals, ints, reals_of, ints_of, r)


@inlined
def _commit(
    reals: Any, ints: Any, reals_of: Any, ints_of: Any, counts: Any, edges: Any, r: Any, end_s: Any
) -> Any:
    made, prompt = ints[r, N] * ints[r, RUN_K], ints[r, RUN_PROMPT]
    ints[r, ITERATION] += ints[r, RUN_K]
    ints[r, TOKENS] += made
    ints[r, CONTEXT] += made
    ints[r, KV] += made
    reals[r, BUSY] += end_s - reals[r, RUN_BEGINS]
    reals[r, BOUNDARY], ints[r, RUN_K] = end_s, 0
    if prompt:
        reals[r, PREFILL] += prompt * reals[r, PER_PROMPT]
    iteration, s = ints[r, ITERATION], ints[r, RUNNING]
    while s != NOBODY:
        after = ints_of[s, NEXT]
        if ints_of[s, STATE] == PREFILLING and ints_of[s, LEFT] == 0:
            ints[r, TOKENS] += 1
            ints[r, CONTEXT] += ints_of[s, PROMPT] + ints_of[s, MADE]
            ints[r, N] += 1
            ints_of[s, MADE] += 1
            ints_of[s, STATE] = DECODING
            ints_of[s, FINISHES] = iteration + ints_of[s, OUTPUT] - ints_of[s, MADE]
            if ints_of[s, MADE] == 1:
                reals_of[s, FIRST] = end_s
                ttft_ms = (end_s - reals_of[s, ARRIVED]) * 1000.0
                counts[r, TTFT, np.searchsorted(edges, ttft_ms, side="right")] += 1
        if ints_of[s, STATE] == DECODING and ints_of[s, FINISHES] <= iteration:
            _release(ints, ints_of, r, s)
            ints[r, KNOWN] -= 1
            reals_of[s, ENDED] = end_s
            _link(ints, ints_of, r, ANSWERED, ints[r, ANSWERED + 1], s)
        s = after


@inlined
def _go(
    reals: Any, ints: Any, reals_of: Any, ints_of: Any, counts: Any, edges: Any, r: Any, to_s: Any
) -> Any:
    while True:
        if ints[r, RUN_K] == 0:
            if reals[r, BOUNDARY] >= to_s or not _arrive(reals, ints, reals_of, ints_of, r, to_s):
                break
            _compose(reals, ints, reals_of, ints_of, r)
        end_s = _end(reals, r, ints[r, RUN_K])
        if end_s > to_s:
            break
        _commit(reals, ints, reals_of, ints_of, counts, edges, r, end_s)
    reals[r, NOW] = to_s


@inlined
def _work_s(reals: Any, r: Any, prompt: Any, output: Any) -> Any:
    """`WorkRates.work_s`."""
    a, s, c, w = reals[r, WORK], reals[r, WORK + 1], reals[r, WORK + 2], reals[r, WORK + 3]
    tau, sequences, kv = reals[r, WORK + 4], reals[r, WORK + 5], reals[r, WORK + 6]
    each, held = reals[r, WORK + 7], (prompt + output / 2.0) * output
    least = each + prompt * a + output * s + held * c
    full = w * max(output / sequences, held / kv)
    return max(least / (1.0 - w / tau), least + full)


@inlined
def _submit(
    reals: Any, ints: Any, reals_of: Any, ints_of: Any, r: Any, s: Any, now_s: Any, slow: Any
) -> Any:
    """A request whose lengths, priority and arrival are noted."""
    prompt, output = ints_of[s, PROMPT], ints_of[s, OUTPUT]
    n = ints[r, KNOWN] + 1
    front_s = (
        reals[r, REQUEST] + reals[r, REQUEST_PER_PROMPT] * prompt
        + reals[r, CONTENTION] * math.sqrt(n)
        + reals[r, PER_OTHER] * (min(n, ints[r, SEQUENCES_MAX]) - 1)
    )  # fmt: skip
    ready_s = reals[r, READY] = max(now_s + front_s, reals[r, READY])
    if slow != 1.0:
        usual_s = front_s + reals[r, FIXED] + reals[r, PER_PROMPT] * prompt
        ready_s = max(now_s, ready_s + (slow - 1.0) * usual_s)
    reals_of[s, READY_AT] = ready_s
    ints[r, SUBMITTED] += 1
    ints[r, KNOWN], ints[r, IN_FLIGHT] = n, ints[r, IN_FLIGHT] + 1
    ints_of[s, NUMBER], ints_of[s, LEFT] = ints[r, SUBMITTED], prompt
    ints_of[s, MADE], ints_of[s, STATE], reals_of[s, FIRST] = 0, WAITING, 0.0
    before = ints[r, FRONT + 1] if ints[r, FRONT] != NOBODY else ints[r, QUEUE]
    joins = before == NOBODY or ints_of[s, PRIORITY] < ints_of[before, PRIORITY]
    joins = joins or ready_s < reals_of[before, READY_AT]
    at = ints[r, FRONT + 1]
    while at != NOBODY and reals_of[at, READY_AT] > ready_s:
        at = ints_of[at, PREVIOUS]
    _link(ints, ints_of, r, FRONT, at, s)
    if ints[r, RUN_K] > 0 and joins:
        _stop_for_arrival(reals, ints, reals_of, ints_of, r)
    work_s = _work_s(reals, r, prompt, output)
    reals[r, SUMS] += 1.0
    reals[r, SUMS + 1] += prompt
    reals[r, SUMS + 2] += output
    reals[r, SUMS + 3] += work_s
    reals[r, SUMS + 4] += work_s * work_s


@inlined
def _less_loaded(ints: Any, ready: Any, uniform: Any) -> Any:
    """`serve.health.health.less_loaded`."""
    n = len(ready)
    if n == 1:
        return ready[0]
    i = math.floor(uniform * n)
    j = int((uniform * n - i) * (n - 1))
    one, other = ready[i], ready[j + (j >= i)]
    return other if ints[other, IN_FLIGHT] < ints[one, IN_FLIGHT] else one


@compiled(
    *STATE_TYPES, INTS, VECTOR, VECTOR, VECTOR, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS,
    "float64", NUMBERS, NUMBERS,
)  # fmt: skip
def take(
    reals: Any, ints: Any, reals_of: Any, ints_of: Any, counts: Any, edges: Any,
    asked: Any, at_s: Any, uniform: Any, slow: Any, place: Any, ready: Any, starts: Any, free: Any,
    taken: Any, now_s: Any, rows: Any, n_free: Any,
) -> None:  # fmt: skip
    """Give requests of `asked` (n, 4: number, prompt, output, priority) to the pools at `place`.

    `rows`: the first to be given, which becomes that of one that is not taken, and the end. −1 in
    `place`: nowhere. Replicas of pool p are `ready[starts[p]:starts[p + 1]]`, and one that is full
    leaves it to the first that has room. `free[:n_free]` are unused rows of requests.
    """
    row, end = rows[0], rows[1]
    while row < end:
        pool = place[row]
        if pool >= 0:
            here, n, held = ready[starts[pool] : starts[pool + 1]], 0, HELD_MAX + asked[row, 3]
            if len(here) == 0:
                break
            r, begins_s = _less_loaded(ints, here, uniform[row]), max(at_s[row], now_s)
            room = ints[r, CONTEXT_MAX] - asked[row, 1]
            _go(reals, ints, reals_of, ints_of, counts, edges, r, begins_s)
            while n < len(here) and ints[r, KNOWN] >= ints[r, held]:
                r, n = here[n], n + 1
                _go(reals, ints, reals_of, ints_of, counts, edges, r, begins_s)
            if room < 1 or ints[r, KNOWN] >= ints[r, held]:
                break
            n_free[0] -= 1
            s, taken[row] = free[n_free[0]], pool
            ints_of[s, ASKED], ints_of[s, PROMPT] = asked[row, 0], asked[row, 1]
            ints_of[s, OUTPUT], ints_of[s, PRIORITY] = min(asked[row, 2], room), asked[row, 3]
            reals_of[s, ARRIVED] = at_s[row]
            _submit(reals, ints, reals_of, ints_of, r, s, begins_s, slow[row])
        row += 1
    rows[0] = row


@compiled(*STATE_TYPES, NUMBERS, "float64", NUMBERS, NUMBERS, INTS, FLOATS, NUMBERS)
def advance(
    reals: Any, ints: Any, reals_of: Any, ints_of: Any, counts: Any, edges: Any,
    replicas: Any, to_s: Any, free: Any, n_free: Any, who: Any, when: Any, n_answered: Any,
) -> None:  # fmt: skip
    """Move replicas that have requests; `who` (n, 2: number, output) was answered `when` (n, 2)."""
    n = 0
    for at in range(len(replicas)):
        r = replicas[at]
        if ints[r, IN_FLIGHT] == 0:
            continue
        _go(reals, ints, reals_of, ints_of, counts, edges, r, to_s)
        s = ints[r, ANSWERED]
        while s != NOBODY:
            output, first_s, end_s = ints_of[s, OUTPUT], reals_of[s, FIRST], reals_of[s, ENDED]
            who[n, 0], who[n, 1], when[n, 0], when[n, 1] = ints_of[s, ASKED], output, first_s, end_s
            reals[r, LAST_END] = end_s
            if output > 1:
                tpot_ms = (end_s - first_s) / (output - 1) * 1000.0
                counts[r, TPOT, np.searchsorted(edges, tpot_ms, side="right")] += 1
            ints[r, IN_FLIGHT] -= 1
            free[n_free[0]] = s
            n_free[0] += 1
            n += 1
            s = ints_of[s, NEXT]
        ints[r, ANSWERED] = ints[r, ANSWERED + 1] = NOBODY
    n_answered[0] = n


@compiled(*STATE_TYPES, NUMBERS, "float64", FLOATS)
def look(
    reals: Any, ints: Any, reals_of: Any, ints_of: Any, counts: Any, edges: Any,
    replicas: Any, to_s: Any, found: Any,
) -> None:  # fmt: skip
    """Gauges of replicas, each moved to a time if it is behind."""
    for at in range(len(replicas)):
        r = replicas[at]
        if reals[r, NOW] < to_s:
            _go(reals, ints, reals_of, ints_of, counts, edges, r, to_s)
        done, waiting = _done(reals, ints, r), 0
        for of in (FRONT, QUEUE):
            s = ints[r, of]
            while s != NOBODY:
                waiting += ints_of[s, LEFT]
                s = ints_of[s, NEXT]
        busy_s, prefill_s = reals[r, BUSY], reals[r, PREFILL]
        if ints[r, RUN_K] > 0:
            passed_s = reals[r, NOW] - reals[r, RUN_BEGINS]
            busy_s += passed_s
            if ints[r, RUN_PROMPT]:
                share = passed_s / reals[r, RUN_FIRST]
                prefill_s += share * ints[r, RUN_PROMPT] * reals[r, PER_PROMPT]
        found[at, L_NOW], found[at, L_BUSY], found[at, L_PREFILL] = reals[r, NOW], busy_s, prefill_s
        found[at, L_RUNNING] = ints[r, N_RUNNING]
        found[at, L_QUEUED] = ints[r, KNOWN] - ints[r, N_RUNNING]
        found[at, L_KV] = ints[r, KV] + ints[r, N] * done
        found[at, L_TOKENS] = ints[r, TOKENS] + ints[r, N] * done
        found[at, L_ITERATIONS], found[at, L_WAITING] = ints[r, ITERATION] + done, waiting
