"""What processes report of themselves: records, windows, and the fleet's state.

Counts are added up by event time. May import `log`, `feedback.schema` and errors.
"""
