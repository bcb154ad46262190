"""How fast decisions are, beside an empty handler: alone, in crowds, in batches, under overload.

May import `errors` of load/, the benches `decisions` (its peers) and `recovery` (made-up feedback),
infra/, serve/ and below; `fairlead bench speed` and `history` use it, and `operate` its clients.
"""
