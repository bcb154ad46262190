"""What is written to the topics: tickets, outcomes, decisions, and what makes one valid or refused.

May import `log` and errors.
"""
