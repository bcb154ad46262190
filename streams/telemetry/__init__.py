"""What processes report of themselves: records, windows, and the fleet's state summed from them.

Counts are added up by event time. May import `feedback`, `log` and `errors`.
"""
