"""Thousands of arms that are described by text: the nearest few are found, then ranked.

Apart from `estimates`, whose sums are of one model each.
May import `policies`, `context`, `targets` and `option`.
"""
