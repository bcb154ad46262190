"""What will be asked for: workload by class, forecasts, and how far they have been off.

May import `autoscaling.contract` and infra/capacity.
"""
