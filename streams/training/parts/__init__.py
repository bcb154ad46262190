"""Parts of snapshots as bytes, how they are read (copied, or where they lie), and what is left.

May import `alarms` and `errors`.
"""
