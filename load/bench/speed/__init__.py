"""How fast decisions are, beside an empty handler: alone, in crowds, in batches, under overload.

May import `errors` of load/, of the benches `decisions` (its peers), `recovery` (made-up feedback)
and `processor`, infra/, serve/ and below; `fairlead bench speed` and `history` use it, and
`operate` its clients.
"""
