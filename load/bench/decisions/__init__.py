"""Routing decisions on real outcomes: Fairlead as served, simple rules, other libraries' bandits.

May import `data`, `theme` and `errors`; serve/ and learners/ beside. `streams`, `peer_runner` and
`peer_players` also run in the peers' own environment: they import numpy alone, and never what
Fairlead is made of.
"""
