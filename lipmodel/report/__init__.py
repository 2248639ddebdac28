"""What people see: progress on stderr, tables on stdout."""
