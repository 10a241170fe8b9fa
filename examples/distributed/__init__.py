"""The debate in four processes, any of which but the moderator's may be killed."""
