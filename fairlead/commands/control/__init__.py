"""Commands on a running site: its models, pools, budgets and policy, listed and changed.

May import `terminal` and `started` of fairlead/commands/, the client's `channels` and `errors`, and
every package below fairlead/.
"""
