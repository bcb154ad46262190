"""A result as one page that needs nothing else, and as JSON beside it: for those who sign it off.

May import `theme` and `shares` of load/.
"""
