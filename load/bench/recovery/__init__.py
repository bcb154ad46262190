"""The trainer killed at every durable step, and how fast feedback is folded.

May import `errors` and `workers` of load/, and streams/.
"""
