"""From what contenders chose to figures, their intervals, the JSON, and pictures.

May import `contenders`, `experiments`, `limits`, `options`, `orders`, `served`, `streams`,
`variants` and `theme`.
"""
