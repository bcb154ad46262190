"""New models: their answers imported from a file, and what one would do before its first request.

May import `encoders`, `errors` and `routing`.
"""
