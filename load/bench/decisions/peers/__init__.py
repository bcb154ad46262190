"""Other projects' bandits on the same streams, in a Python environment of their own.

May import `orders` and `streams`. `runner` and `players` run in that environment: they import
`streams` and numpy alone, and never what Fairlead is made of.
"""
