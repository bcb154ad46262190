"""How many models are asked for one request: one, a cheap one first (cascade), several (fan-out).

May import `race`, `caller`, `settlement`, `attempt`, `answers`, `backend`, `routing`, `proto` and
`errors`.
"""
