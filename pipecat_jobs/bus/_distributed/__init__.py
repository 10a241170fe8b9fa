"""The parts of a bus between processes that are the same for every engine."""
