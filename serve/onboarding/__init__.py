"""New models: their answers imported from a file, and what one would do before its first request.

May import everything of serve but `deploy`, `dispatch` and the interfaces.
"""
