"""The trainer killed at every durable step, and how fast feedback is folded.

May import `errors` alone of load/, and streams/.
"""
