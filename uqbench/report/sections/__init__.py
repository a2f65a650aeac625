"""What a report says, one section a function."""
