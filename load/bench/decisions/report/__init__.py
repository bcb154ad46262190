"""From what contenders chose to figures, their intervals, the JSON, and pictures.

May import `contenders`, `options`, `orders`, `served`, `streams`, `variants` and `theme`.
"""
