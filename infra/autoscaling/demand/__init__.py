"""What will be asked for: workload by class, forecasts, and how far they have been off.

May import `contract` and `capacity`.
"""
