"""The dashboard: one page, the JSON that it reads, and a day of history kept for both.

May import `status`, `settings` and `errors` of infra/, and serve/. Reads in threads: no request
waits for it.
"""
