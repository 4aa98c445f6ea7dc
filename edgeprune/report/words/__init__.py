"""What is said of a result in words, by the report and by the command line alike."""
