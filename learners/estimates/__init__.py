"""What outcomes say about each model: exact sums, means, ridge, neighbours, and their blend.

May import `outcomes`, `context`, `drift`, `targets`, `traits`, `kernels` and `option`.
"""
