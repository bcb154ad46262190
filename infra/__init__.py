"""Machines: settings, the cluster a router runs in, pools, their sizing, and the emulated engine.

May import serve/, streams/ and learners/. Settings files and environment variables are read in
`settings` alone.
"""
