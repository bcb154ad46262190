"""What a team asks before a learner spends its money: do budgets hold, and what does that cost?

May import `decisions` and `data`; serve/, streams/ and learners/ beside.
"""
