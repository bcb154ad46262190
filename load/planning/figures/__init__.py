"""What came of a simulation, as JSON: added up by model, pool, tenant and time, as requests end.

May import `site` of load/planning, and `simulation` and `data` of load/.
"""
