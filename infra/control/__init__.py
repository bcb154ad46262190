"""Changing a running site's settings: each edit checked, listed with who and when, and applied.

May import `settings` and `errors` of infra/, and what lies below infra/.
"""
