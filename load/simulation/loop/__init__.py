"""The loop in virtual time: the real router, telemetry and trainer.

May import `machines` and `data`.
"""
