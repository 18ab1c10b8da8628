"""What an operator relies on: bounds under overload, fair shares, endings that lose nothing, flat memory."""
