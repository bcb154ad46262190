"""From estimates to probabilities: the policies, and the one place that draws.

May import nothing else of learners/.
"""
