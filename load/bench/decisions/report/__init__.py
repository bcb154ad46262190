"""From what contenders chose to figures, their intervals, the JSON, and pictures.

May import `contenders`, `options`, `orders`, `streams` and `variants`, and of load/ `theme`.
"""
