"""What a team asks before a learner spends its money: do budgets hold, and what does that cost?

Plays outcome tables on a virtual clock with `load.bench.decisions`' streams and peers.
"""
