"""What the benchmark times."""
