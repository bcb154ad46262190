"""Replicas that answer: emulated, started or elsewhere, and how they are found.

May import `endpoints`, `settings`, `capacity`, `emulator` and errors.
"""
