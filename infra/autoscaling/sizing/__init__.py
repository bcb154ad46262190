"""The cheapest replicas that carry the demand: an integer programme, and limits on its changes.

May import `demand`, `contract` and `capacity`.
"""
