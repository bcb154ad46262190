"""How the figures that ship were fitted: the emulator, queueing, projections.

May import `data` and what it fits. Developers run it; of the product, `fairlead landmarks` alone
does.
"""
