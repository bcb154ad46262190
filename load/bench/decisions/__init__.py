"""Routing decisions on real outcomes: Fairlead as served, simple rules, other libraries' bandits.

May import `data`, `theme`, `workers` and `errors`; serve/ and learners/ beside. `streams` also
runs in the peers' own environment: it imports numpy alone.
"""
