"""Searching past contexts: the index over them, made by the trainer and searched by routers.

May import `context`, `kernels` and below.
"""
