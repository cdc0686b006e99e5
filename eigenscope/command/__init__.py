"""What the command line says and decides."""
