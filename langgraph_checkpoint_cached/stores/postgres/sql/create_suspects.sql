-- Threads that somebody wrote to without being able to tell Redis. A row says: what Redis holds of this thread may
-- be stale. It is inserted by the transaction of that write, and removed by whoever has voided the thread in Redis
-- since; `mark` tells the row that was seen from one that another write has renewed meanwhile.
create table if not exists checkpoint_cache_stale_threads (
    prefix text not null, -- of the keys in Redis
    thread_id text not null,
    mark text not null,
    since timestamptz not null default now(),
    primary key (prefix, thread_id)
)
