"""Arms of an operator's file: which one of thousands a request should use.

Apart from `routing`, which estimates every model of the catalogue for every request.
May import `routing`, `rules`, `encoders` and `errors` of serve/; streams/ and learners/ beside.
"""
