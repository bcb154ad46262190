"""An emulated LLM inference engine: `engine` in virtual time, `real_time` by the clock.

    models, gpus ──▶ derive ──┐
    fitted.json ──────────────┴─▶ performance, power ──▶ engine ──▶ real_time

How the coefficients were fitted, and how well: docs/emulator.md. May import `errors` alone.
"""
