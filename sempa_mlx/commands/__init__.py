"""What each command does, between the parsed line and the library. The part of `cli` that works."""
