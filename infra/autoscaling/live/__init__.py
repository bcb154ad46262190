"""The planner on a running site: what it observes, its actor, and the policy that Ray Serve calls.

May import `planner`, `sizing`, `demand`, `contract`, `pools`, `settings`, `capacity` and
`head_actor`.
"""
