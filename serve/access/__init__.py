"""Who may call, as whom, and what: bearer tokens with a tenant and scopes.

May import `routing` and `errors` of serve/, and every package below it.
"""
