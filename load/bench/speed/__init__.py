"""How fast decisions are, beside an empty handler: alone, in crowds, in batches, under overload.

May import `errors` of load/, serve/ and below; only `fairlead bench speed` uses it.
"""
