"""A small site to plan: two models, two types of GPU, one pool."""

SETTINGS = """
[preference]
cost = 20
[[gpus]]
name = "h100_sxm"
usd_per_hour = 2.0
available = 8
[[gpus]]
name = "l40s"
usd_per_hour = 0.85
available = 4
[[models]]
name = "llama-3.1-8b"
shape = "Llama-3.1-8B-Instruct"
usd_per_1m_input_tokens = 0.02
usd_per_1m_output_tokens = 0.05
[[models]]
name = "qwen3-32b"
shape = "Qwen3-32B"
usd_per_1m_input_tokens = 0.08
usd_per_1m_output_tokens = 0.28
[[pools]]
name = "small"
model = "llama-3.1-8b"
region = "eu"
backend = "emulated"
gpu = "l40s"
replicas_min = 1
"""
