"""A logged day under another policy: what it would have been worth, and how sure that is.

May import `planning` (its sites and snapshots), `data` and `errors`; the rest of Fairlead below
load/.
"""
