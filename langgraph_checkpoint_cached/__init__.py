"""A LangGraph checkpointer that keeps threads in Postgres and serves them from Redis."""
