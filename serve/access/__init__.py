"""Who may call, as whom, and what: bearer tokens with a tenant and scopes.

May import `errors` alone of serve/, and learners/.
"""
