"""What each command of the `selkern` program does."""
