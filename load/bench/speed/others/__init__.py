"""What other projects do of the same: their choosers of models, and an empty handler in Ray Serve.

May import `child`, `known` and `serving` of the bench, the peers of `decisions`, infra/ and below.
`peer_timing` runs in the peers' Python: it imports their players and numpy alone.
"""
