"""Compiled code for what is computed per request: estimates, utilities, probabilities, draws.

Each kernel does what the file that calls it also does with numpy, which is the reference. `threads`
sees to it that one thread computes.
May import nothing of the project.
"""
