"""What others asked of this worker: its handlers, the jobs they run, and their responses."""
