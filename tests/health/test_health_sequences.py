"""Any sequence of attempts, changes of a pool and time: what holds of the pools' health always."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from strategies import lightly

from serve.health.health import Health, HealthOptions
from serve.health.lease import EndpointLease


class AnySequence(RuleBasedStateMachine):
    """Attempts begin and end, endpoints come and go, time passes: what must hold always."""

    LIMIT = 6
    POOLS = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.health = Health(HealthOptions(in_flight_max=self.LIMIT))
        self.now_s = 0.0
        self.leases: list[tuple[str, EndpointLease]] = []
        self.members = {p: [] for p in self.POOLS}

    @rule(
        pool=st.sampled_from(POOLS),
        n=st.sampled_from([0, 1, 2, 3, 12, 25]),
        first=st.integers(0, 3),
    )
    def change_endpoints(self, pool, n, first):
        self.members[pool] = [f"{pool}{i}" for i in range(first, first + n)]
        self.health.set_endpoints(pool, self.members[pool], self.now_s)

    @rule(
        pool=st.sampled_from(POOLS),
        uniform=st.floats(0, 1, exclude_max=True),
        prefer=st.integers(0, 4),
    )
    def begin(self, pool, uniform, prefer):
        mine = sum(p == pool for p, _ in self.leases)
        lease = self.health.pick(pool, self.now_s, uniform=uniform, prefer=f"{pool}{prefer}")
        assert (lease is None) == (mine >= self.LIMIT or not self.members[pool])
        if lease:
            assert lease.address in self.members[pool]
            self.leases.append((pool, lease))

    @rule(pool=st.sampled_from(POOLS), which=st.integers(0, 2), times=st.integers(1, 6))
    def fail_in_a_row(self, pool, which, times):
        for _ in range(times):
            if sum(p == pool for p, _ in self.leases) < self.LIMIT and self.members[pool]:
                lease = self.health.pick(pool, self.now_s, uniform=0.3, prefer=f"{pool}{which}")
                lease.failed(self.now_s, "reset")

    @precondition(lambda self: self.leases)
    @rule(
        which=st.integers(0, 100),
        how=st.sampled_from(["succeeded", "failed", "cancelled"]),
        token=st.booleans(),
    )
    def end(self, which, how, token):
        _, lease = self.leases.pop(which % len(self.leases))
        if token:
            lease.first_token(self.now_s)
        if how == "failed":
            lease.failed(self.now_s, "reset")
        else:
            getattr(lease, how)(self.now_s)

    @rule(for_s=st.sampled_from([0.01, 1.0, 9.0, 29.0, 31.0, 400.0]))
    def pass_time(self, for_s):
        self.now_s += for_s

    @invariant()
    def counts_are_those_of_the_leases(self):
        for status in self.health.status(self.now_s):
            mine = [lease.address for p, lease in self.leases if p == status.pool]
            assert status.in_flight == len(mine) <= self.LIMIT
            assert all(0 <= e.in_flight <= mine.count(e.address) for e in status.endpoints)

    @invariant()
    def at_most_a_tenth_is_ejected_but_one_may_be(self):
        for status in self.health.status(self.now_s):
            n = len(status.endpoints)
            ejected = sum(e.ejected for e in status.endpoints)
            out = sum(e.out for e in status.endpoints)
            assert ejected == min(out, max(1, n // 10))
            assert status.panic == (n - out < n / 2)
            assert all(e.until_s <= self.now_s + 300.0 for e in status.endpoints)
            assert all(e.out == (e.until_s > 0.0) for e in status.endpoints)

    @invariant()
    def at_most_one_probe_is_in_flight_per_pool(self):
        """But for those whose endpoint has gone meanwhile."""
        for pool in self.POOLS:
            probes = [lease for p, lease in self.leases if p == pool and lease.probe]
            assert sum(lease._stint == lease._endpoint.stint for lease in probes) <= 1

    def status_of(self, pool):
        return [e for s in self.health.status(self.now_s) if s.pool == pool for e in s.endpoints]

    @invariant()
    def order_is_a_permutation_with_the_able_first_in_rank(self):
        ranked = ["b", "a", "nowhere", "c", "a"]
        found = self.health.order(ranked, self.now_s)
        assert sorted(found) == sorted(ranked)
        able = [p for p in ranked if not self.health.reason(p, self.now_s)]
        assert found[: len(able)] == able
        assert found[len(able) :] == [p for p in ranked if p not in able]

    def teardown(self) -> None:
        """Once all attempts have ended and the longest ejection is over, every pool is able."""
        while self.leases:
            self.leases.pop()[1].cancelled(self.now_s)
        assert all(s.in_flight == 0 for s in self.health.status(self.now_s))
        assert all(e.in_flight == 0 for p in self.POOLS for e in self.status_of(p))
        self.now_s += 300.0
        for pool, members in self.members.items():
            assert not members or self.health.reason(pool, self.now_s) == ""
            for _ in members:  # a probe each, and all are healthy
                self.health.pick(pool, self.now_s, uniform=0.5, prefer=f"{pool}0").succeeded(
                    self.now_s
                )
            assert not any(e.out for e in self.status_of(pool))


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(lightly, max_examples=80, stateful_step_count=50)
