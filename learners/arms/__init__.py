"""Thousands of arms that are described by text: the nearest few are found, then ranked.

Apart from `estimates`, whose sums are of one model each; of it only the order of figures is used.
May import `estimates`, `policies`, `outcomes`, `context`, `targets` and `option`.
"""
