"""What is written to the topics: tickets, outcomes, decisions, and what makes a record valid.

May import `log`, `errors` and `whole_file`.
"""
