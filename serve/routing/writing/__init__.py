"""Decisions in writing: as bytes of the reply, as tickets and lines of the log, and in words.

May import `router`, `choices`, `eligible`, `live` and `request` beside it, `proto` and `errors`.
"""
