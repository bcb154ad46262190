"""Spoiled messages, bodies, heads and frames, sent to a dispatcher in a process of its own.

May import `speed` and `upstreams` of load/bench, `errors`, and serve/.
"""
