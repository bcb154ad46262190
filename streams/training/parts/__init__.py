"""Parts of snapshots as bytes, and how they are read: copied, or where they lie.

May import nothing of the project.
"""
