"""Exact sums over outcomes: fading, in buckets of time, and how much each tenant counts in them.

May import `option`.
"""
