"""Commands before a site runs: its settings file, its machine, and the tokens of its callers.

May import every package below fairlead/.
"""
