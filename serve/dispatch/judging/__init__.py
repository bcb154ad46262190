"""How good answers are, without a person: by agreement, by another model, and the best of several.

May import `strategies`, `race`, `caller`, `attempt`, `retickets`, `answers`, `backend`, `routing`,
`budgets`, `proto` and `errors`.
"""
