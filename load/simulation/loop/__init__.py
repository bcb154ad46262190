"""The loop in virtual time: the real router, telemetry and trainer.

May import `load.simulation.machines` and `load.data`.
"""
