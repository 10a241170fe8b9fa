"""What the client of a bot sees of jobs, over RTVI."""
