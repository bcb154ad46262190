"""What a fleet can carry: models on GPUs, the load of a replica, and queueing against a target.

May import `emulator` and `errors`.
"""
