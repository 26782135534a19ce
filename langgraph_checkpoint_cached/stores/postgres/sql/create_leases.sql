-- Threads whose latest writes Redis may hold alone (mode "write_behind"). A row is a lease: the right of the process that
-- made it to be ahead of Postgres on this thread. What was acknowledged is what Postgres holds, and then what the
-- thread's journal says beyond `position`. Without a row, Postgres holds all of it.
create table if not exists checkpoint_cache_leases (
    prefix text not null, -- of the keys in Redis
    thread_id text not null,
    token text not null, -- of the lease; its journal has the same
    position bigint not null default 0, -- the number up to which the journal has been replayed
    since timestamptz not null default now(),
    moved_at timestamptz not null default now(), -- when that was noted last
    primary key (prefix, thread_id)
)
