"""How the figures that ship were found: the emulator, queueing, projections.

May import infra/ and what it fits; run by developers, never by the product.
"""
