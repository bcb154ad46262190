"""Requests as others recorded them: files of many formats, read by one rule; and made-up arrivals.

May import `data`, `errors` and `theme` of load/.
"""
