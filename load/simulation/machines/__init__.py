"""Machines in virtual time: replicas, pools and the fleet, and what they cost.

May import infra/ alone.
"""
