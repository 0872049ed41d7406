"""Looking inside: what a network's selective kernels chose, how well it does, and the report of both."""
