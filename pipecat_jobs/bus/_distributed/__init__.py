"""What a bus between processes knows of jobs, whatever engine carries its messages."""
