"""Outcome tables and request traces that others measured: read and checked.

May import `errors` alone of load/; the bundled files lie beside it.
"""
