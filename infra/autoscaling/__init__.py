"""Sizing the fleet: what is asked for, what it takes, and which replicas are the cheapest to have.

    Observed ──forecast──▶ demand ──queueing──▶ work to be carried ──mix──▶ Plan, explained

The same `Scaler` runs live, behind Ray Serve's autoscaling, and in virtual time.
"""
