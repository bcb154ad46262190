"""What a fleet can do: models on GPUs, the load of a replica, and queueing against a target.

May import the emulator's performance figures and errors.
"""
