"""What people on call do with the command `langgraph-cached`: one module for each command."""
