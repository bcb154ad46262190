"""Other projects' bandits on the same streams, in an environment of their own.

May import `streams` and `orders`. `players` and `runner` run in the peers' environment: they, and
`streams`, import numpy alone, and never what Fairlead is made of.
"""
