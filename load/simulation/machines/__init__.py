"""Machines in virtual time: replicas, pools and the fleet, and what they cost.

May import nothing else of load/; its replicas run infra/'s emulated engine.
"""
