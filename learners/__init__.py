"""Arrays in, arrays out: what past outcomes say about the next request.

    outcomes ──fold──▶ statistics ──solve──▶ estimates ──policy──▶ probabilities
              (exact sums)        (once per snapshot)  (per batch)

Nothing here knows the clock, the network, files or events. Time and randomness are arguments.
May import no other package of the project.
"""
