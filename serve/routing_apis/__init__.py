"""The router behind others: their HTTP contracts for a router, and that of arms; each a thin face.

May import `openai_api`, `dispatch`, `health`, `routing`, `meanings` and `errors`.
"""
