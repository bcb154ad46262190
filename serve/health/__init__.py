"""Which endpoints can be called, learned from the calls themselves.

Time to the first token, failures and outliers of each endpoint, and the lease under which it is
called. May import `errors` alone of serve/.
"""
