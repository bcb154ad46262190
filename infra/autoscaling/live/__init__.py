"""The planner in a running site: what it observes, its actor, and the policy that Ray Serve calls.

May import all of infra/autoscaling, infra/pools, infra/settings and infra/capacity.
"""
