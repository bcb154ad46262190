"""What outcomes say about each model: exact sums, means, ridge, neighbours, their blend.

May import `learners.context`, `outcomes` and `targets`.
"""
