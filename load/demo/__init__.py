"""The whole loop on real outcomes, its score, and its picture.

May import `data`, `errors` and `theme`.
"""
