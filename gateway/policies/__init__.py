"""What a policy says, from its text to the tables of the kernel: no I/O, no clock."""
