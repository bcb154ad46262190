"""Sizing the fleet: forecast demand, the capacity it needs, and the cheapest replicas that give it.

    Observed ──forecast──▶ demand ──queueing──▶ work to be carried ──mix──▶ Plan, explained

The same `Scaler` runs live, behind Ray Serve's autoscaling, and in virtual time.
May import `pools`, `settings`, `capacity` and `head_actor`; all but its `live` needs `capacity`
alone.
"""
