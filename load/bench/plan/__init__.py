"""What `fairlead plan`, `simulate` and `replay` promise: measured against each other and a peer.

May import `planning`, `replay`, `simulation`, `traces`, `data`, `errors` of load/, and `loop` and
`settings` of load/bench/.
"""
