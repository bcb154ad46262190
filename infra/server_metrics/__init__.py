"""What servers of models say of themselves: their Prometheus pages, fetched and read.

May import `errors`.
"""
