"""How the figures that ship were fitted: the emulator, queueing, projections.

May import `data` and what it fits; developers run it, the product never does.
"""
