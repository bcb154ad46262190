"""How the figures that ship were fitted: the emulator, queueing, projections.

May import `data`, `errors`, `workers` and what it fits. Developers run it; of the product, only
`fairlead landmarks` does.
"""
