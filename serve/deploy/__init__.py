"""Router and dispatcher replicas as Ray Serve deployments: assembled, started and watched.

May import every other room of serve/; nothing in serve/ imports it. Ray is known to `deployment`
and `dispatch_deployment` alone.
"""

from learners.kernels.threads import one_thread

one_thread()  # before FAISS is imported, whoever starts this process
