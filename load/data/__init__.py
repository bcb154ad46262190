"""Outcome tables and traces: what was measured by others, read and checked.

May import errors alone; the bundled files lie beside it.
"""
