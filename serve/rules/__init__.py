"""Rules of the operator's: conditions on a request, and what follows of them before it is scored.

May import `encoders`, `sessions` and `errors`; `routing` and `dispatch` do as rules say.
"""
