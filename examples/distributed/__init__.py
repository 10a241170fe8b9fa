"""The debate in four processes; any of them except the moderator's may be killed."""
