"""The router behind others: their HTTP contracts for a router, each a thin face of Route.

May import `openai_api`, `dispatch`, `health`, `routing`, `meanings` and `errors`.
"""
