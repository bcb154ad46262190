"""What all replicas of a machine know of conversations: who holds them, what state they are in.

May import `shared_memory` alone of serve/. `rules` asks for states, `routing` and `dispatch` for
who holds them.
"""
