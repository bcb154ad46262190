"""Machines: settings, the local cluster, the site a router lives in; later pools and autoscaling.

`settings` is the only place that reads files and environment variables.
"""
