"""What this worker asked of others: groups, their scopes, and the liveness of workers."""
