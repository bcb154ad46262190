"""From estimates to probabilities: the policies, and the one place that draws.

May import `option`, and nothing else of learners/.
"""
