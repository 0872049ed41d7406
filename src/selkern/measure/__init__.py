"""Time, memory and the machine they are measured on."""
