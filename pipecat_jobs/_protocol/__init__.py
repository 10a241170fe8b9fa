"""What both halves and every bus share: messages, headers, deadlines, tasks and flow control."""
