"""A trace played against a live server, open loop: what was intended, delivered, and answered.

May import `data`, `traces`, `workers` and `errors` of load/.
"""
