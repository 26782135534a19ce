"""Demo that `langgraph-cached demo` plays: a support desk on LangGraph, whose servers fail."""
