"""From estimates to probabilities: one registry of policies, and one place that draws.

May import nothing of learners/ beside.
"""
