"""What `langgraph-cached demo` plays: a support desk on LangGraph, and what may happen to its servers."""
